"""Batches to fine-tune on: whole conversations packed into rows, each blind to its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from tandem.errors import DataError
from tandem.training.data.batch import IGNORED, Batch
from tandem.training.data.conversations import Example
from tandem.training.data.order import SampleOrder


class ConversationBatches:
    """Packed rows: as many whole conversations one after the other as fit, the rest padded and never learnt.

    Args:
        examples: At least one.
        seq_length: T, at least as long as the longest example.
        pad: Token id behind the last conversation of a row.
        seed: Of the conversations' order within the rows, and of the rows' order.
    """

    def __init__(self, examples: Sequence[Example], seq_length: int, pad: int, seed: int) -> None:
        if not examples:
            raise DataError("no conversation can be trained on; see the file of skipped rows for the reasons")
        order = SampleOrder(seed, len(examples))
        rows = _pack([examples[order.at(place)] for place in range(len(examples))], seq_length)
        self.samples = len(rows)
        """Rows in one epoch."""
        self._tokens, self._targets, self._segments = _fill(rows, seq_length, pad)
        self._order = SampleOrder(seed, self.samples)

    def at(self, position: int, count: int) -> Batch:
        """Rows `position` to `position + count - 1` of an endless run: [count, T]."""
        rows = torch.tensor([self._order.at(place) for place in range(position, position + count)])
        return Batch(tokens=self._tokens[rows], targets=self._targets[rows], segments=self._segments[rows])


def _pack(examples: Sequence[Example], seq_length: int) -> list[list[Example]]:
    """Greedy and in order, so that it can be followed by hand; the waste is under half a conversation a row."""
    rows: list[list[Example]] = [[]]
    room = seq_length
    for example in examples:
        if len(example.ids) > room:
            rows.append([])
            room = seq_length
        rows[-1].append(example)
        room -= len(example.ids)
    return rows


def _fill(rows: list[list[Example]], length: int, pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = np.full((len(rows), length), pad, dtype=np.int64)
    targets = np.full((len(rows), length), IGNORED, dtype=np.int64)
    segments = np.zeros((len(rows), length), dtype=np.int64)
    for row, examples in enumerate(rows):
        edges = np.cumsum([0, *(len(example.ids) for example in examples)])
        for number, (example, (begin, end)) in enumerate(zip(examples, pairwise(edges), strict=True), start=1):
            tokens[row, begin:end] = example.ids
            targets[row, begin : end - 1] = np.where(example.loss_mask[1:], example.ids[1:], IGNORED)
            segments[row, begin:end] = number
    return torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(segments)
