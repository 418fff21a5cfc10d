"""Folders on this machine and on an object store, kept alike."""
