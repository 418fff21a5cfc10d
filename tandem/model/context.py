"""The seam between the decoder and whatever remembers earlier tokens.

The decoder hands every layer's fresh queries, keys and values to a context and gets the attention's result back.
Training uses `CausalContext`, which remembers nothing; the engine brings one over a paged cache. Neither side imports
the other.

Shapes: T tokens (any leading dimensions), H query heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class AttentionContext(Protocol):
    """Where a batch's tokens stand and what they may look at."""

    @property
    def positions(self) -> Tensor:
        """Position of every token in its own sequence, int64 [T]."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Remember `k` and `v` [T, K, D] of this layer, then attend from `q` [T, H, D]; returns [T, H, D].

        Called once per layer and batch, in layer order.
        """


class CausalContext:
    """Whole sequences side by side: [B, T], each token sees itself and those before it.

    Args:
        batch: Number of sequences, B.
        length: Tokens in each, T.
        device: Where the tokens are.
    """

    def __init__(self, batch: int, length: int, device: torch.device) -> None:
        self._positions = torch.arange(length, device=device).expand(batch, length)

    @property
    def positions(self) -> Tensor:
        """0 to T-1 in every row, int64 [B, T]."""
        return self._positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each row; `layer` does not matter, nothing is kept."""
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
        )
        return out.transpose(1, 2)
