"""What a model is, as numbers: its configuration and its arithmetic; the recipes. No torch."""
