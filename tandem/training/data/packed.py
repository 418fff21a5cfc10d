"""Attention over rows that hold several conversations: none sees another, and each counts positions from 0."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
        same = segments[:, :, None] == segments[:, None, :]
        self._mask = (same & torch.ones(length, length, dtype=torch.bool, device=segments.device).tril())[:, None]

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own segment, int64 [B, T]."""
        return self._positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention under the mask; `layer` does not matter, nothing is kept. [B, T, H, D] in and out."""
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=self._mask,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return out.transpose(1, 2)
