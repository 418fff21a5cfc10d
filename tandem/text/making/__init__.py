"""Small tokenizers in the files of every family, for models with random weights. No torch, no network."""
