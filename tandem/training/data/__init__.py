"""Texts and conversations to token batches, in an order that depends on the seed and the position alone."""
