"""Rows of every known kind to texts or conversations."""
