"""`Costs`: what a model takes to keep and to run, as one value for people and programs."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.catalogue.arithmetic import (
    DTYPE_BYTES,
    active_parameters,
    flops_per_token,
    kv_bytes_per_token,
    parameters,
    weight_bytes,
)
from tandem.catalogue.config import ModelConfig
from tandem.errors import UsageError

CACHE_ITEM_BYTES = 2
"""Keys and values are counted in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a model takes."""

    parameters: int
    active_parameters: int
    """That one token passes through."""
    weight_bytes: dict[str, int]
    """Dtype -> bytes of all parameters in it; scales of quantised weights not counted."""
    kv_bytes_per_token: int
    """In 16 bits, over all layers."""
    context: int
    """Tokens that the two below are for."""
    kv_bytes: int
    """Of one sequence that fills the context."""
    flops_per_token: int
    """Of the last token of that sequence, forward; training takes three times as many."""


def require_context(context: int | None) -> None:
    """Refuse a number of tokens that is none.

    Raises:
        UsageError: It is below 1.
    """
    if context is not None and context < 1:
        raise UsageError(f"--context {context}: give a number of tokens from 1 up")


def costs_of(config: ModelConfig, context: int | None = None) -> Costs:
    """What a model takes; `context` is the longest sequence it was made for where it is left out."""
    context = context or config.max_position
    per_token = kv_bytes_per_token(config, CACHE_ITEM_BYTES)
    return Costs(
        parameters=parameters(config),
        active_parameters=active_parameters(config),
        weight_bytes={dtype: weight_bytes(config, dtype) for dtype in DTYPE_BYTES},
        kv_bytes_per_token=per_token,
        context=context,
        kv_bytes=per_token * context,
        flops_per_token=flops_per_token(config, context),
    )
