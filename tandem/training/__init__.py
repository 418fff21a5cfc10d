"""Data to batches to steps to checkpoints to exports."""
