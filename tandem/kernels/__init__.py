"""Arithmetic that the decoder and the cache share, and the place where a device's own kernels come in."""
