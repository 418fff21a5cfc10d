"""What a model costs, from its configuration alone: parameters and cache bytes."""

from __future__ import annotations

from tandem.catalogue.config import ModelConfig


def parameters(config: ModelConfig) -> int:
    """Number of distinct parameters; a tied head counts once."""
    attention = config.attention
    query, key = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    per_layer = config.hidden_size * (2 * query + 2 * key + 3 * config.feed_forward.size + 2)
    tables = config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2)
    return config.layers * per_layer + tables + config.hidden_size


def kv_bytes_per_token(config: ModelConfig, item_bytes: int) -> int:
    """Bytes of keys and values that one token leaves in the cache, over all layers."""
    return config.layers * 2 * config.attention.kv_heads * config.attention.head_dim * item_bytes
