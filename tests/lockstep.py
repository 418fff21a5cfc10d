"""The ranks of a group as threads of one process, which wait for each other at every collective."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Table:
    """Where the ranks lay down what the others need."""

    def __init__(self, size: int) -> None:
        self.places: list[Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def all(self, rank: int, x: Tensor) -> list[Tensor]:
        self.places[rank] = x.clone()
        self.barrier.wait()
        there = [one for one in self.places if one is not None]
        self.barrier.wait()
        return there


@dataclass(frozen=True)
class ThreadGroup:
    """One rank's side; satisfies `Group`."""

    rank: int
    size: int
    table: Table

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self.table.all(self.rank, x)).sum(0))

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self.table.all(self.rank, x), dim=-1)


def in_lockstep(size: int, work: Callable[[ThreadGroup], T]) -> list[T]:
    """What each rank's `work` returned, in rank order."""
    table = Table(size)

    def one(rank: int) -> T:
        try:
            return work(ThreadGroup(rank, size, table))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(one, rank) for rank in range(size)]]
