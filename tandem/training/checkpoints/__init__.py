"""Checkpoints: all that a run needs to go on exactly where it was."""
