"""Batches to pretrain on: documents put end to end and cut into samples of equal length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tandem.errors import DataError
from tandem.training.data.batch import Batch
from tandem.training.data.order import SampleOrder


class TokenBatches:
    """Samples of T + 1 tokens, each beginning with the last of the one before, so every token is a target once.

    The last tokens that fill no sample are left out.

    Args:
        tokens: All documents end to end, integers [N]; may be mapped from a file.
        seq_length: T.
        seed: Of the order.

    Raises:
        DataError: There are fewer than T + 1 tokens.
    """

    def __init__(self, tokens: NDArray[Any], seq_length: int, seed: int) -> None:
        self.samples = (len(tokens) - 1) // seq_length
        """Samples in one epoch."""
        if self.samples < 1:
            raise DataError(f"{len(tokens)} tokens make no sample of {seq_length} + 1; add texts or lower seq_length")
        self._tokens = tokens
        self._length = seq_length
        self._order = SampleOrder(seed, self.samples)

    def at(self, position: int, count: int) -> Batch:
        """Samples `position` to `position + count - 1` of an endless run: [count, T]."""
        rows = torch.from_numpy(np.stack([self._sample(place) for place in range(position, position + count)]))
        return Batch(tokens=rows[:, :-1], targets=rows[:, 1:])

    def _sample(self, position: int) -> NDArray[np.int64]:
        begin = self._order.at(position) * self._length
        return self._tokens[begin : begin + self._length + 1].astype(np.int64)
