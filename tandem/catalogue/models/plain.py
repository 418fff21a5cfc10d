"""The plain decoder most models are: grouped-query attention, rotary positions, SwiGLU."""

from __future__ import annotations

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Rope, Scaling


def plain(
    *,
    family: str,
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    inner: int,
    theta: float,
    norm_eps: float,
    max_position: int,
    scaling: Scaling | None = None,
    qkv_bias: bool = False,
    tied: bool = False,
) -> ModelConfig:
    """A decoder whose heads fill the hidden size; `inner` is the feed-forward size."""
    head_dim = hidden // heads
    return ModelConfig(
        family=family,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=layers,
        attention=GQA(heads=heads, kv_heads=kv_heads, head_dim=head_dim, qkv_bias=qkv_bias),
        position=Rope(theta=theta, dims=head_dim, scaling=scaling),
        feed_forward=SwiGLU(size=inner),
        norm_eps=norm_eps,
        tied_embeddings=tied,
        max_position=max_position,
    )
