"""Batches that mix what should be learned with what should not be forgotten."""

from __future__ import annotations

import torch

from tandem.training.data.batch import Batch, Batches


class ReplayBatches:
    """Every so many-th sample comes from what the model was trained on before.

    Args:
        fresh: What it learns now; has segments.
        replayed: What it must not forget; has segments, too.
        every: Sample 0, `every`, 2 * `every` and so on are replayed; at least 2.
    """

    def __init__(self, fresh: Batches, replayed: Batches, every: int) -> None:
        assert every > 1, "something must be fresh"
        self._fresh = fresh
        self._replayed = replayed
        self._every = every

    def at(self, position: int, count: int) -> Batch:
        """Samples `position` to `position + count - 1` of an endless run, the fresh ones first: [count, T]."""
        begin, end = self._replayed_before(position), self._replayed_before(position + count)
        fresh = self._fresh.at(position - begin, count - (end - begin)) if count > end - begin else None
        replayed = self._replayed.at(begin, end - begin) if end > begin else None
        parts = [part for part in (fresh, replayed) if part is not None]
        segments = [part.segments for part in parts if part.segments is not None]
        assert len(segments) == len(parts), "both have segments"
        return Batch(
            tokens=torch.cat([part.tokens for part in parts]),
            targets=torch.cat([part.targets for part in parts]),
            segments=torch.cat(segments),
        )

    def _replayed_before(self, position: int) -> int:
        return -(-position // self._every)
