"""Who works: how each one is doing, and whose turn it is."""
