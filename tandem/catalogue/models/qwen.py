"""Qwen of 2023: separate from its successors in everything but the idea.

The long-context tricks are on in 7B and 14B; 72B was trained on long sequences and has them off.
"""

from __future__ import annotations

from dataclasses import replace

from tandem.catalogue.config import GQA, ModelConfig
from tandem.catalogue.layout import ParallelLayout, derived, documented, like
from tandem.catalogue.models.plain import plain
from tandem.catalogue.named import NamedModel
from tandem.catalogue.position import QwenNTK


def _qwen(size: str, config: ModelConfig, layouts: tuple[ParallelLayout, ...], note: str) -> NamedModel:
    return NamedModel(
        name=f"qwen-{size.lower()}",
        series="Qwen",
        repository=f"Qwen/Qwen-{size}-Chat",
        config=config,
        dtype="bfloat16",
        tokenizer="qwen",
        chat="chatml",
        layouts=layouts,
        note=note,
    )


def _config(
    *,
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    inner: int,
    theta: float,
    max_position: int,
    trained: int | None = None,
) -> ModelConfig:
    """One size; `trained` is the length beyond which log-n and NTK set in, None where they are off."""
    config = plain(
        family="qwen",
        vocab=vocab,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        inner=inner,
        theta=theta,
        norm_eps=1e-6,
        max_position=max_position,
        scaling=QwenNTK(trained=trained) if trained else None,
        qkv_bias=True,
    )
    assert isinstance(config.attention, GQA)
    return replace(config, attention=replace(config.attention, logn=trained))


def _stretched(trained: int) -> str:
    return f"beyond {trained} tokens attention is scaled by log-n and the rotary base grows"


QWEN = (
    _qwen(
        "7B",
        _config(
            vocab=151936, hidden=4096, layers=32, heads=32, inner=11008, theta=1e4, max_position=32768, trained=8192
        ),
        (documented(4096, tp=4, pp=1, cards=4), documented(8192, tp=4, pp=1, cards=4)),
        _stretched(8192),
    ),
    _qwen(
        "14B",
        _config(
            vocab=152064, hidden=5120, layers=40, heads=40, inner=13696, theta=1e4, max_position=8192, trained=2048
        ),
        (documented(4096, tp=8, pp=1, cards=8),),
        _stretched(2048),
    ),
    _qwen(
        "72B",
        _config(vocab=152064, hidden=8192, layers=80, heads=64, inner=24576, theta=1e6, max_position=32768),
        (derived(like("qwen1.5-72b"), 8192, tp=8, pp=8, cards=64),),
        "log-n and the growing rotary base are off",
    ),
)
