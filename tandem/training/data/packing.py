"""Which conversations share a row: from their lengths alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Packing:
    """Rows of conversations: row r holds `members[begins[r]:begins[r + 1]]`, in this order."""

    members: NDArray[np.int64]
    """Numbers of conversations, each once."""
    begins: NDArray[np.int64]
    """[rows + 1]."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.begins) - 1

    def row(self, number: int) -> NDArray[np.int64]:
        """The conversations of one row."""
        return self.members[self.begins[number] : self.begins[number + 1]]


def best_fit(lengths: NDArray[np.int32], order: NDArray[np.int64], capacity: int) -> Packing:
    """Put each conversation, in the given order, into the fullest row it fits, or into a new one.

    Rooms that rows have left are bits of one integer, so the smallest that is large enough is found without looking at
    the rows: a million conversations take seconds. Not sorted by length first: rows would hold equals, and the order
    would say more of the length than of the seed.

    Args:
        lengths: Tokens in each conversation, none above the capacity.
        order: Of the conversations, each once.
        capacity: Tokens in a row.
    """
    row_of = np.empty(len(order), np.int64)
    open_rows: dict[int, list[int]] = {}  # by room left
    rooms = rows = 0
    for place, length in enumerate(lengths[order].tolist()):
        larger = rooms >> length
        if larger:
            room = length + (larger & -larger).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row, rows = capacity, rows, rows + 1
        row_of[place] = row
        if left := room - length:
            open_rows.setdefault(left, []).append(row)
            rooms |= 1 << left
    members = order[np.argsort(row_of, kind="stable")]
    return Packing(members, np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))]).astype(np.int64))


def one_each(conversations: int) -> Packing:
    """Every conversation in a row of its own."""
    return Packing(np.arange(conversations), np.arange(conversations + 1))
