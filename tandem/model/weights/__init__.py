"""Weights on disk: which tensors a folder's files hold, whether they fit a model, and their way in and out of it."""
