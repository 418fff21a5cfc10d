"""Batches to fine-tune on: whole conversations, several in a row and each blind to its neighbours, or one in each.

Tokens stay in their files until a batch asks for them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tandem.errors import DataError
from tandem.training.data.batch import Batch
from tandem.training.data.indexed import IndexedTokens
from tandem.training.data.labels import IGNORED
from tandem.training.data.order import SampleOrder, permutation
from tandem.training.data.packing import best_fit, one_each


class ConversationBatches:
    """Rows of whole conversations, padded with what is never learnt.

    Packed rows have `segments`, from 1, and 0 where padded, and are T long. Others are as long as the longest of the
    batch, and after `Batch.split` as the longest of the micro-batch.

    Args:
        ids: Tokens of each conversation.
        labels: As `ids` where they are learnt, else -100; shifted here, so that each stands under the token before.
        seq_length: T, at least as long as the longest conversation.
        pad: Token id behind the last conversation of a row.
        seed: Of the order in which rows are filled, and of the rows' order.
        pack: Whether rows are shared.

    Raises:
        DataError: There is no conversation, one is longer than T, or ids and labels do not belong together.
    """

    def __init__(
        self, ids: IndexedTokens, labels: IndexedTokens, seq_length: int, pad: int, seed: int, *, pack: bool = True
    ) -> None:
        _check(ids, labels, seq_length)
        self._ids, self._labels, self._pad = ids, labels, pad
        order = permutation(seed, len(ids), 0)
        self._packing = best_fit(ids.lengths, order, seq_length) if pack else one_each(len(ids))
        self._width = seq_length if pack else None
        self.samples = len(self._packing)
        """Rows in one epoch."""
        self._order = SampleOrder(seed, self.samples)

    def at(self, position: int, count: int) -> Batch:
        """Rows `position` to `position + count - 1` of an endless run: [count, T]."""
        rows = [self._packing.row(self._order.at(place)) for place in range(position, position + count)]
        widths = tuple(int(self._ids.lengths[row].sum()) for row in rows)
        width = self._width or max(widths)
        shape = (count, width)
        tokens, targets = np.full(shape, self._pad, np.int64), np.full(shape, IGNORED, np.int64)
        segments = np.zeros(shape, np.int64)
        for place, row in enumerate(rows):
            self._fill(row, tokens[place], targets[place], segments[place])
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(targets),
            segments=None if self._width is None else torch.from_numpy(segments),
            widths=None if self._width else widths,
        )

    def _fill(self, row: NDArray[np.int64], tokens: Row, targets: Row, segments: Row) -> None:
        edges = np.cumsum([0, *self._ids.lengths[row]]).tolist()
        for segment, (conversation, (begin, end)) in enumerate(zip(row.tolist(), pairwise(edges), strict=True), 1):
            tokens[begin:end] = self._ids[conversation]
            targets[begin : end - 1] = self._labels[conversation][1:]
            segments[begin:end] = segment


Row = NDArray[Any]


def _check(ids: IndexedTokens, labels: IndexedTokens, seq_length: int) -> None:
    if not len(ids):
        raise DataError("no conversation can be trained on; see the file of skipped rows for the reasons")
    if not np.array_equal(ids.lengths, labels.lengths):
        raise DataError("input_ids and labels have other lengths, so they are not of one run; prepare the data again")
    if longer := int((ids.lengths > seq_length).sum()):
        raise DataError(
            f"{longer} of {len(ids)} conversations are longer than seq_length {seq_length}, the longest has "
            f"{ids.lengths.max()} tokens; raise it, or prepare the data with it, which skips them by name"
        )
