"""Kills, freezes and starts instances again, at moments that a seed decides."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from chaos.fleet import Fleet, Shape, Side
from chaos.instance import GoneError, Instance

LONGEST_FREEZE = 0.8
"""Seconds."""


@dataclass(frozen=True)
class Kill:
    """One kind of kill."""

    side: Side
    rank: bool
    """Only one of several ranks dies."""

    def __str__(self) -> str:
        return f"{self.side} rank killed" if self.rank else f"{self.side} killed"


def kills(shape: Shape) -> list[Kill]:
    """Every kind there is."""
    ranks: dict[Side, int] = {"prefill": shape.prefill_ranks, "decode": shape.decode_ranks}
    return [*(Kill(side, False) for side in ranks), *(Kill(side, True) for side, count in ranks.items() if count > 1)]


class Storm:
    """Strikes at a fleet.

    Args:
        fleet: Whom it hits.
        rng: Decides whom and, after each kind of kill has come once, how.
        moments: Number of requests begun, at each of which it strikes.
    """

    def __init__(self, fleet: Fleet, rng: random.Random, moments: list[int]) -> None:
        self._fleet = fleet
        self._rng = rng
        self._moments = sorted(moments)
        self._dealt = kills(fleet.shape)
        self._strikes: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()

    def tick(self, begun: int) -> None:
        """So many requests have begun; a strike waits until there is somebody to be struck."""
        while self._moments and self._moments[0] <= begun and (strike := self._next()):
            self._moments.pop(0)
            self._strikes.add(asyncio.create_task(strike))

    def _next(self) -> Coroutine[Any, Any, None] | None:
        """Of the kills every kind comes once, then what chance brings; None if there is nobody for it now."""
        up = [instance for instance in self._fleet.instances if instance.up]
        if up and not self._dealt and self._rng.random() < 0.35:
            return self._freeze(self._rng.choice(up))
        kill = self._dealt[0] if self._dealt else self._rng.choice(kills(self._fleet.shape))
        victims = [instance for instance in up if instance.role == kill.side and self._dispensable(instance)]
        if not victims:
            return None
        del self._dealt[:1]
        victim = self._rng.choice(victims)
        victim.condemn()
        return self._kill(victim, kill)

    async def over(self) -> None:
        """Wait until everything runs again.

        Raises:
            Exception: What went wrong on the way.
        """
        await asyncio.gather(*self._strikes)

    def _dispensable(self, victim: Instance) -> bool:
        """Of two of a kind one is left, so that the load goes on; where there is but one, requests wait for it."""
        alike = self._fleet.of(victim.role)
        return len(alike) == 1 or any(other.up for other in alike if other is not victim)

    async def _freeze(self, victim: Instance) -> None:
        self.counts["frozen"] += 1
        victim.freeze()
        await asyncio.sleep(self._rng.uniform(0.1, LONGEST_FREEZE))
        victim.thaw()

    async def _kill(self, victim: Instance, kill: Kill) -> None:
        self.counts[str(kill)] += 1
        if kill.rank:
            try:
                await asyncio.to_thread(victim.kill_rank, self._rng)
            except GoneError as error:
                self._fleet.faults.append(str(error))
        else:
            victim.kill()
        await self._fleet.revive(victim)
