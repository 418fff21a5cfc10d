"""Kills, freezes and starts instances again, at moments that a seed decides."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from chaos.fleet import Fleet
from chaos.instance import GoneError, Instance

LONGEST_FREEZE = 0.8
"""Seconds."""


class Storm:
    """Strikes at a fleet.

    Args:
        fleet: Whom it hits.
        rng: Decides whom and how.
        moments: Number of requests begun, at each of which it strikes.
    """

    def __init__(self, fleet: Fleet, rng: random.Random, moments: list[int]) -> None:
        self._fleet = fleet
        self._rng = rng
        self._moments = sorted(moments)
        self._strikes: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()

    def tick(self, begun: int) -> None:
        """So many requests have begun; a strike waits until there is somebody to be struck."""
        while self._moments and self._moments[0] <= begun and (up := [i for i in self._fleet.instances if i.up]):
            self._moments.pop(0)
            victims = [instance for instance in up if self._dispensable(instance)]
            if not victims or self._rng.random() < 0.35:
                strike = self._freeze(self._rng.choice(up))
            else:
                victim = self._rng.choice(victims)
                victim.condemn()
                strike = self._kill(victim)
            self._strikes.add(asyncio.create_task(strike))

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

    async def _kill(self, victim: Instance) -> None:
        if self._rng.random() < 0.4 and victim.ranks:
            self.counts[f"{victim.role} rank killed"] += 1
            try:
                await asyncio.to_thread(victim.kill_rank, self._rng)
            except GoneError as error:
                self._fleet.faults.append(str(error))
        else:
            self.counts[f"{victim.role} killed"] += 1
            victim.kill()
        await self._fleet.revive(victim)
