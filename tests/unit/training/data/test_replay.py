"""Replay: a function of the position alone, each source in its own order, however the run is cut into batches."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tandem.training.data.batch import Batch
from tandem.training.data.replay import ReplayBatches


class Counting:
    """Sample n is a row of n; `mark` tells two sources apart."""

    def __init__(self, mark: int) -> None:
        self._mark = mark

    def at(self, position: int, count: int) -> Batch:
        rows = torch.arange(position, position + count)[:, None].repeat(1, 3)
        marks = torch.full_like(rows, self._mark)
        return Batch(tokens=rows, targets=marks, segments=marks)


def samples(batches: ReplayBatches, position: int, count: int) -> list[tuple[int, int]]:
    batch = batches.at(position, count)
    assert batch.segments is not None
    return sorted((int(mark), int(row)) for mark, row in zip(batch.targets[:, 0], batch.tokens[:, 0], strict=True))


@given(
    position=st.integers(0, 100), counts=st.lists(st.integers(1, 9), min_size=1, max_size=5), every=st.integers(2, 5)
)
def test_batches_of_any_size_give_the_same_samples(position: int, counts: list[int], every: int) -> None:
    batches = ReplayBatches(Counting(1), Counting(2), every)
    whole, place, parts = samples(batches, position, sum(counts)), position, []
    for count in counts:
        parts += samples(batches, place, count)
        place += count
    assert sorted(parts) == whole


def test_every_third_is_replayed() -> None:
    batches = ReplayBatches(Counting(1), Counting(2), 3)
    assert samples(batches, 0, 7) == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2)]
