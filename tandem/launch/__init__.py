"""What the documents' one start command means: a role from rank tables, and vLLM 0.5.0's flags. No torch."""
