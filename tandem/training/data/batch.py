"""`Batch`: what one optimisation step, or one micro-batch of it, learns from.

Shapes: B sequences, T tokens in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from tandem.model.context import AttentionContext, CausalContext
from tandem.training.data.labels import IGNORED
from tandem.training.data.packed import PackedContext


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tokens and what should follow each."""

    tokens: Tensor
    """int64 [B, T]."""
    targets: Tensor
    """int64 [B, T]: the next token, or `IGNORED`."""
    segments: Tensor | None = None
    """int64 [B, T]: which of the packed conversations a token belongs to; None where a row is one sequence."""

    widths: tuple[int, ...] | None = None
    """[B]: columns of each row that hold anything; behind them is padding. None where every row is full."""
    samples: Tensor | None = None
    """int64 [B]: which sample of the run each row is, for what is random by it; None where nothing is."""

    def context(self) -> AttentionContext:
        """What each token may look at."""
        batch, length = self.tokens.shape
        packed = None if self.segments is None else PackedContext(self.segments)
        context = packed or CausalContext(batch, length, self.tokens.device)
        context.samples = self.samples
        return context

    def numbered(self, first: int) -> Batch:
        """The same batch, whose rows are the run's samples from `first` on."""
        return replace(self, samples=torch.arange(first, first + len(self.tokens), device=self.tokens.device))

    def valid(self) -> int:
        """Number of targets that count."""
        return int((self.targets != IGNORED).sum())

    def split(self, size: int) -> Iterator[Batch]:
        """Micro-batches of `size` sequences, in order, each no wider than its widest row."""
        for begin in range(0, len(self.tokens), size):
            rows = slice(begin, begin + size)
            widths = None if self.widths is None else self.widths[rows]
            columns = slice(None if widths is None else max(widths))
            yield Batch(
                tokens=self.tokens[rows, columns],
                targets=self.targets[rows, columns],
                segments=None if self.segments is None else self.segments[rows, columns],
                widths=widths,
                samples=None if self.samples is None else self.samples[rows],
            )

    def blank(self) -> Batch:
        """One sequence of the same length that nothing is learnt from."""
        first = next(self.split(1))
        return replace(first, targets=torch.full_like(first.targets, IGNORED))

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        segments, samples = (None if part is None else part.to(device) for part in (self.segments, self.samples))
        tokens, targets = self.tokens.to(device), self.targets.to(device)
        return replace(self, tokens=tokens, targets=targets, segments=segments, samples=samples)


class Batches(Protocol):
    """A source of batches with no memory of its own: position in the data is one integer."""

    def at(self, position: int, count: int) -> Batch:
        """Samples `position` to `position + count - 1` of an endless run; depends on nothing else."""
