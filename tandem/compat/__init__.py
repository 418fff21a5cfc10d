"""The documents' scripts under their own names and flags, thin over the same code. No torch."""
