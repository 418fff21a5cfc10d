"""What a model costs, from its configuration alone: parameters, bytes, operations, cache."""

from __future__ import annotations

import math

from tandem.catalogue.config import GQA, ModelConfig, MoE, SwiGLU
from tandem.catalogue.shapes import parameter_shapes

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}


def parameters(config: ModelConfig) -> int:
    """Number of distinct parameters; a tied head counts once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def active_parameters(config: ModelConfig) -> int:
    """Parameters one token passes through: of a mixture only its chosen experts, of the embedding none."""
    total = 0
    for name, shape in parameter_shapes(config).items():
        used = math.prod(shape)
        if ".experts." in name:
            assert isinstance(config.feed_forward, MoE)
            used = used // config.feed_forward.experts * config.feed_forward.top_k
        if name != "embedding.weight" or config.tied_embeddings:
            total += used
    return total


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all parameters in one dtype of `DTYPE_BYTES`."""
    return parameters(config) * DTYPE_BYTES[dtype]


def cache_shape(config: ModelConfig) -> tuple[int, int, int]:
    """What a token leaves in each layer's cache: (planes, heads, numbers per head).

    Keys and values are two planes; latent attention keeps one: the latent and the rotated key part.
    """
    attention = config.attention
    if isinstance(attention, GQA):
        return 2, attention.kv_heads, attention.head_dim
    return 1, 1, attention.kv_rank + attention.rope_dim


def kv_bytes_per_token(config: ModelConfig, item_bytes: int) -> int:
    """Bytes that one token leaves in the cache, over all layers."""
    return config.layers * math.prod(cache_shape(config)) * item_bytes


def flops_per_token(config: ModelConfig, context: int) -> int:
    """Floating-point operations of one forward token that sees `context` tokens; training takes three times as many.

    Two per active parameter, and attention's two products: scores and weighted values. Latent attention is counted as
    expanded, which is how a prompt is computed.
    """
    attention = config.attention
    if isinstance(attention, GQA):
        per_seen = attention.heads * 2 * attention.head_dim
    else:
        per_seen = attention.heads * (attention.nope_dim + attention.rope_dim + attention.value_dim)
    return 2 * active_parameters(config) + 2 * config.layers * per_seen * context


LOGIT_BYTES = 66
"""Of one logit while it is sampled from, most of it for the integers that its noise is made of.

Measured with 64 rows of 152064 logits: 61.5 beside a bfloat16 logit itself, 56.4 beside one of fp32.
"""


def step_bytes(config: ModelConfig, tokens: int, rows: int, item_bytes: int) -> int:
    """An upper estimate of what one inference step needs beside weights and cache.

    Args:
        config: Of the model.
        tokens: Most tokens of a step.
        rows: Most logits' rows of a step.
        item_bytes: Of one activation.
    """
    attention, part = config.attention, config.feed_forward
    heads = attention.heads * (
        attention.head_dim if isinstance(attention, GQA) else attention.nope_dim + attention.rope_dim
    )
    inner = part.size if isinstance(part, SwiGLU) else part.size * part.top_k + part.shared_size
    # The residual stream and its norms; queries, keys, values and what comes of them; gate, up and their product.
    per_token = 4 * config.hidden_size + 4 * heads + 3 * inner
    return tokens * per_token * item_bytes + rows * config.vocab_size * LOGIT_BYTES
