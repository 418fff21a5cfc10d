"""Whose turn it is, among those who could: one class for each policy."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from heapq import nlargest
from itertools import count
from typing import Final, Literal

from tandem.gateway.request.demand import BLOCK_BYTES, BYTES_PER_TOKEN, Demand
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.prefixes import Prefixes
from tandem.gateway.workers.vitals import Vitals

PolicyName = Literal["round_robin", "least_loaded", "power_of_two", "prefix_aware"]

COMPARED: Final = 8
"""Of more candidates than these, so many drawn by chance are compared: the least loaded of them is as good as any."""


class Policy:
    """Chooses in one role; a pool has one for each."""

    def choose(self, candidates: Sequence[Vitals], demand: Demand) -> Vitals:
        """One of at least one."""
        raise NotImplementedError

    def sent(self, demand: Demand, worker: Worker) -> None:
        """A worker has been sent a request; by default nothing is remembered of it."""

    def forget(self, worker: Worker) -> None:
        """A worker went down or was taken out, and what it had cached is gone."""

    def cached_tokens(self, demand: Demand) -> dict[Worker, int]:
        """How many tokens of a prompt each worker need not compute, as far as is known."""
        return {}


class RoundRobin(Policy):
    """One after the other."""

    def __init__(self) -> None:
        self._turn = count()

    def choose(self, candidates: Sequence[Vitals], demand: Demand) -> Vitals:
        """The next one."""
        return candidates[next(self._turn) % len(candidates)]


class LeastLoaded(Policy):
    """Who has the fewest tokens in flight; of equals, who has waited longest."""

    def __init__(self) -> None:
        self._turn = count(1)

    def choose(self, candidates: Sequence[Vitals], demand: Demand) -> Vitals:
        """The least loaded, of a sample where there are many."""
        cached = self.cached_tokens(demand)
        chosen = min(
            self.sample(candidates, cached),
            key=lambda one: (one.load.tokens - (cached.get(one.worker, 0) if cached else 0), one.turn),
        )
        chosen.turn = next(self._turn)
        return chosen

    def sample(self, candidates: Sequence[Vitals], cached: Mapping[Worker, int]) -> Sequence[Vitals]:
        """Who is compared."""
        return candidates if len(candidates) <= COMPARED else random.choices(candidates, k=COMPARED)  # noqa: S311


class PowerOfTwo(LeastLoaded):
    """The less loaded of two who are drawn by chance.

    Source: Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001.
    """

    def sample(self, candidates: Sequence[Vitals], cached: Mapping[Worker, int]) -> Sequence[Vitals]:
        """Two of them."""
        return candidates if len(candidates) <= 2 else random.sample(candidates, 2)


class PrefixAware(LeastLoaded):
    """Who would be done first: tokens in flight, less those of the prompt that it was sent before."""

    def __init__(self) -> None:
        super().__init__()
        self._prefixes = Prefixes()

    def sample(self, candidates: Sequence[Vitals], cached: Mapping[Worker, int]) -> Sequence[Vitals]:
        """Of many, those who were sent most of this prompt, and some others."""
        known = [one for one in candidates if one.worker in cached]
        most = nlargest(COMPARED, known, key=lambda one: cached[one.worker])
        return [*most, *super().sample(candidates, cached)]

    def sent(self, demand: Demand, worker: Worker) -> None:
        """It has the prompt's blocks from now on."""
        self._prefixes.sent(demand.blocks, worker)

    def forget(self, worker: Worker) -> None:
        """It has none any more."""
        self._prefixes.forget(worker)

    def cached_tokens(self, demand: Demand) -> dict[Worker, int]:
        """By what was sent."""
        matches = self._prefixes.matches(demand.blocks)
        return {worker: blocks * BLOCK_BYTES // BYTES_PER_TOKEN for worker, blocks in matches.items()}


POLICIES: Final[dict[PolicyName, Callable[[], Policy]]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "power_of_two": PowerOfTwo,
    "prefix_aware": PrefixAware,
}
