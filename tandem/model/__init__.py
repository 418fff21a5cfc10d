"""The decoder, the families that translate to it, and weights on disk."""
