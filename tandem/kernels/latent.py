"""What a layer with latent attention does with latents; who remembers them decides which way costs less.

Shapes: T tokens, S tokens seen, H query heads, D head dimension of queries and keys, Dv of values, R numbers of a
latent.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Latent(Protocol):
    """Makes keys and values of latents, or does without."""

    scale: float
    """Factor on the scores."""

    def expand(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [S, R] -> keys [S, H, D] and values [S, H, Dv]."""

    def absorb(self, q: Tensor) -> Tensor:
        """Queries [T, H, D] -> [T, H, R], whose products with latents are those of `q` with expanded keys."""

    def values(self, weighted: Tensor) -> Tensor:
        """Weighted sums of latents [T, H, R] -> the same sums of expanded values [T, H, Dv]."""
