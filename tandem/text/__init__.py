"""Tokenizers, chat formats, incremental detokenizer, stop matcher. No torch."""
