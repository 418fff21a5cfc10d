"""Attention over rows that hold several conversations: none sees another, and each counts positions from 0.

Four ways, one result:

    CPU     each segment by itself: nothing is computed that a mask would hide. 4 rows of 512 with segments of 93 tokens
            in the mean: 37 ms instead of 109 under a mask, forward and backward; one of 2048: 37 instead of 239
    CUDA    one call of torch's `varlen_attn` over all of them, where it computes what is asked for
    NPU     one call of torch_npu's `npu_fusion_attention` for the same
    else    under a mask over the whole row: ALiBi and latent attention on CUDA and NPUs, and float32 there
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from tandem.kernels.attention import attend
from tandem.kernels.latent import Latent
from tandem.kernels.segments import attend_segments, fits_segments


class PackedContext:
    """Causal attention within each segment of a row.

    Args:
        segments: int64 [B, T], equal for neighbours of one segment; a segment is one unbroken stretch.
    """

    samples: Tensor | None = None
    """int64 [B]: which sample of a training run each row is, for what is random by it."""

    def __init__(self, segments: Tensor) -> None:
        length = segments.shape[1]
        place = torch.arange(length, device=segments.device).expand_as(segments)
        begins = torch.ones_like(segments, dtype=torch.bool)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        self._segments = segments
        self._positions = place - torch.where(begins, place, 0).cummax(dim=1).values
        self._begins = begins
        self._edges: list[int] | None = None
        self._same: Tensor | None = None

    @property
    def positions(self) -> Tensor:
        """Position of each token in its own segment, int64 [B, T]."""
        return self._positions

    @property
    def prompts(self) -> Tensor:
        """Length of each token's segment, int64 [B, T]."""
        return self._mask().sum(dim=-1)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, slopes: Tensor | None
    ) -> Tensor:
        """Attention within the segments; `layer` does not matter, nothing is kept. [B, T, H, D] in and out."""
        if fits_segments(q, v, slopes):
            return attend_segments(q, k, v, self._bounds(), scale=scale, window=window, slopes=slopes)
        return attend(q, k, v, scale=scale, window=window, slopes=slopes, same=self._mask())

    def attend_latent(self, layer: int, q: Tensor, latents: Tensor, by: Latent) -> Tensor:
        """The same over expanded latents [B, T, R]."""
        return self.attend(layer, q, *by.expand(latents), scale=by.scale, window=None, slopes=None)

    def _bounds(self) -> list[int]:
        """Where segments begin in the rows end to end, and where the last ends; read from the device once a batch."""
        if isinstance(self._begins, FakeTensor):  # a plan's, without values: a segment that fills its row costs most
            return list(range(0, self._begins.numel() + 1, self._begins.shape[1]))
        if self._edges is None:
            begins = self._begins.flatten().nonzero().flatten().tolist()
            self._edges = [*begins, self._begins.numel()]
        return self._edges

    def _mask(self) -> Tensor:
        """Which tokens belong together, bool [B, T, T]."""
        if self._same is None:
            self._same = self._segments[:, :, None] == self._segments[:, None, :]
        return self._same
