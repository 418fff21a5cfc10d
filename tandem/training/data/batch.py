"""`Batch`: what one optimisation step, or one micro-batch of it, learns from.

Shapes: B sequences, T tokens in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tandem.model.context import AttentionContext, CausalContext
from tandem.training.data.packed import PackedContext

IGNORED = -100
"""A target that no loss is taken of."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tokens and what should follow each."""

    tokens: Tensor
    """int64 [B, T]."""
    targets: Tensor
    """int64 [B, T]: the next token, or `IGNORED`."""
    segments: Tensor | None = None
    """int64 [B, T]: which of the packed conversations a token belongs to; None where a row is one sequence."""

    def context(self) -> AttentionContext:
        """What each token may look at."""
        if self.segments is not None:
            return PackedContext(self.segments)
        batch, length = self.tokens.shape
        return CausalContext(batch, length, self.tokens.device)

    def valid(self) -> int:
        """Number of targets that count."""
        return int((self.targets != IGNORED).sum())

    def split(self, size: int) -> Iterator[Batch]:
        """Micro-batches of `size` sequences, in order."""
        for begin in range(0, len(self.tokens), size):
            rows = slice(begin, begin + size)
            segments = None if self.segments is None else self.segments[rows]
            yield Batch(tokens=self.tokens[rows], targets=self.targets[rows], segments=segments)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        segments = None if self.segments is None else self.segments.to(device)
        return Batch(tokens=self.tokens.to(device), targets=self.targets.to(device), segments=segments)


class Batches(Protocol):
    """A source of batches with no memory of its own: position in the data is one integer."""

    def at(self, position: int, count: int) -> Batch:
        """Samples `position` to `position + count - 1` of an endless run; depends on nothing else."""
