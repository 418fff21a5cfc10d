"""What the documents' start command means: a role from rank tables, vLLM 0.5.0's flags, `vllm serve`. No torch."""
