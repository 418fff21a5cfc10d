"""tandem: train open LLMs and serve them with prefill and decode apart."""

__version__ = "0.1.0"
