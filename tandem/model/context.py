"""The seam between the decoder and whatever remembers earlier tokens.

The decoder hands every layer's fresh queries, keys and values to a context and gets the attention's result back.
Training uses `CausalContext`, which remembers nothing; the engine brings one over a paged cache. Neither side imports
the other.

Shapes: T tokens (any leading dimensions), H query heads, K key/value heads, D head dimension, R numbers of a latent.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from tandem.kernels.attention import attend
from tandem.kernels.latent import Latent


class AttentionContext(Protocol):
    """Where a batch's tokens stand and what they may look at."""

    @property
    def positions(self) -> Tensor:
        """Position of every token in its own sequence, int64 [T]."""

    @property
    def prompts(self) -> Tensor:
        """Length of the prompt of every token's sequence, int64 [T]; some rotary scalings go by it."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, slopes: Tensor | None
    ) -> Tensor:
        """Remember `k` and `v` [T, K, D] of this layer, then attend from `q` [T, H, D]; returns [T, H, D].

        Called once per layer and batch, in layer order. `scale`, `window` and `slopes` as in `kernels/attention.py`.
        """

    def attend_latent(self, layer: int, q: Tensor, latents: Tensor, by: Latent) -> Tensor:
        """Remember `latents` [T, R] of this layer, then attend from `q` [T, H, D]; returns [T, H, Dv]."""


class CausalContext:
    """Whole sequences side by side: [B, T], each token sees itself and those before it.

    Args:
        batch: Number of sequences, B.
        length: Tokens in each, T; all of them count as prompt.
        device: Where the tokens are.
    """

    samples: Tensor | None = None
    """int64 [B]: which sample of a training run each row is, for what is random by it."""

    def __init__(self, batch: int, length: int, device: torch.device) -> None:
        self._positions = torch.arange(length, device=device).expand(batch, length)

    @property
    def positions(self) -> Tensor:
        """0 to T-1 in every row, int64 [B, T]."""
        return self._positions

    @property
    def prompts(self) -> Tensor:
        """T everywhere, int64 [B, T]."""
        return torch.full_like(self._positions, self._positions.shape[1])

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, slopes: Tensor | None
    ) -> Tensor:
        """Causal attention within each row; `layer` does not matter, nothing is kept."""
        return attend(q, k, v, scale=scale, window=window, slopes=slopes)

    def attend_latent(self, layer: int, q: Tensor, latents: Tensor, by: Latent) -> Tensor:
        """Causal attention within each row over expanded latents."""
        return attend(q, *by.expand(latents), scale=by.scale)
