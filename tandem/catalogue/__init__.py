"""What a model is: its configuration, its arithmetic, its name, where its folder lies; the recipes. No torch."""
