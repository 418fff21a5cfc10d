"""Batches to pretrain on: documents put end to end and cut into samples of equal length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tandem.errors import DataError
from tandem.training.data.batch import Batch
from tandem.training.data.labels import IGNORED
from tandem.training.data.order import SampleOrder


class TokenBatches:
    """Samples of T + 1 tokens, each beginning with the last of the one before, so every token is a target once.

    The last tokens that fill no sample are left out.

    Args:
        tokens: All documents end to end, integers [N]; may be mapped from a file.
        seq_length: T.
        seed: Of the order.
        lengths: Of the documents, N in all, to keep them apart: a token sees and counts its own document alone, and
            the first of a document, which nothing before it tells, is no target. None lets samples be one text each.

    Raises:
        DataError: There are fewer than T + 1 tokens.
    """

    def __init__(
        self, tokens: NDArray[Any], seq_length: int, seed: int, lengths: NDArray[np.int64] | None = None
    ) -> None:
        self.samples = (len(tokens) - 1) // seq_length
        """Samples in one epoch."""
        if self.samples < 1:
            raise DataError(f"{len(tokens)} tokens make no sample of {seq_length} + 1; add texts or lower seq_length")
        self._tokens = tokens
        self._length = seq_length
        self._ends = None if lengths is None else np.cumsum(lengths, dtype=np.int64)
        self._order = SampleOrder(seed, self.samples)

    def at(self, position: int, count: int) -> Batch:
        """Samples `position` to `position + count - 1` of an endless run: [count, T]."""
        begins = [self._order.at(place) * self._length for place in range(position, position + count)]
        rows = torch.from_numpy(np.stack([self._tokens[b : b + self._length + 1].astype(np.int64) for b in begins]))
        if self._ends is None:
            return Batch(tokens=rows[:, :-1], targets=rows[:, 1:])
        documents = torch.from_numpy(np.stack([self._documents(self._ends, begin) for begin in begins]))
        same = documents[:, 1:] == documents[:, :-1]
        return Batch(
            tokens=rows[:, :-1],
            targets=torch.where(same, rows[:, 1:], IGNORED),
            segments=documents[:, :-1].contiguous(),
        )

    def _documents(self, ends: NDArray[np.int64], begin: int) -> NDArray[np.int64]:
        """Which document each of T + 1 tokens is of, from 1."""
        found = np.searchsorted(ends, np.arange(begin, begin + self._length + 1), side="right")
        documents: NDArray[np.int64] = (found - found[0] + 1).astype(np.int64)
        return documents
