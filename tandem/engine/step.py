"""One pass through the model, as every rank of an instance needs to know it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.kv.cache import KVCache
from tandem.kv.paged import Chunk, PagedContext
from tandem.model.decoder import Decoder


@dataclass(frozen=True)
class Step:
    """Tokens of several sequences, laid end to end."""

    tokens: list[int]
    chunks: list[Chunk]
    """Whose tokens they are, in order."""
    rows: list[int]
    """Places in `tokens` whose logits are wanted."""


@torch.inference_mode()
def forward(decoder: Decoder, cache: KVCache, step: Step) -> Tensor | None:
    """Compute a step: logits [rows, V], or None where none are wanted. All ranks of an instance call it together."""
    tokens = torch.tensor(step.tokens, device=cache.device)
    hidden = decoder.hidden(tokens, PagedContext(cache, step.chunks))
    if not step.rows:
        return None
    return decoder.logits(hidden[torch.tensor(step.rows, device=hidden.device)])
