"""Attention over rows that hold several conversations: none sees another, and each counts positions from 0."""

from __future__ import annotations

import torch
from torch import Tensor

from tandem.kernels.attention import attend
from tandem.kernels.latent import Latent


class PackedContext:
    """Causal attention within each segment of a row.

    Args:
        segments: int64 [B, T], equal for neighbours of one segment; a segment is one unbroken stretch.
    """

    def __init__(self, segments: Tensor) -> None:
        length = segments.shape[1]
        place = torch.arange(length, device=segments.device).expand_as(segments)
        begins = torch.ones_like(segments, dtype=torch.bool)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        self._positions = place - torch.where(begins, place, 0).cummax(dim=1).values
        self._same = segments[:, :, None] == segments[:, None, :]

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own segment, int64 [B, T]."""
        return self._positions

    @property
    def prompts(self) -> Tensor:
        """Length of each token's segment, int64 [B, T]."""
        return self._same.sum(dim=-1)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, slopes: Tensor | None
    ) -> Tensor:
        """Attention under the mask; `layer` does not matter, nothing is kept. [B, T, H, D] in and out."""
        return attend(q, k, v, scale=scale, window=window, slopes=slopes, same=self._same)

    def attend_latent(self, layer: int, q: Tensor, latents: Tensor, by: Latent) -> Tensor:
        """The same over expanded latents [B, T, R]."""
        return attend(q, *by.expand(latents), scale=by.scale, same=self._same)
