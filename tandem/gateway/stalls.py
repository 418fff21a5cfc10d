"""Frozen is dead: who is silent for longer than usual is asked whether it lives, and given up if it does not say so.

A long prompt is no stall: a worker that answers its health check may take its time, up to a last limit. One that does
not is stopped, wedged or cut off, and everything that is open with it goes on elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp

from tandem.gateway.pool import Pool
from tandem.gateway.worker import Worker

PERIOD_S: Final = 0.25
"""Between two looks at everything that is open."""
PROBES: Final = 2
"""Health checks in a row that a suspect must miss."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a silence may be."""

    suspect_s: float = 1.0
    """At least so long before the worker is asked whether it lives."""
    times_usual: float = 4.0
    """It is suspect after so many times the longest silence of late, if that is more."""
    probe_s: float = 1.0
    """It has so long to answer."""
    longest_s: float = 600.0
    """Whatever it answers, after so long it is given up."""


class StallWatch:
    """Looks after all exchanges of a pool."""

    def __init__(self, pool: Pool, session: aiohttp.ClientSession, patience: Patience) -> None:
        self._pool = pool
        self._session = session
        self._patience = patience
        self._probing: set[Worker] = set()
        self._probes: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Look for ever; cancel the task to end it."""
        try:
            while True:
                await asyncio.sleep(PERIOD_S)
                for worker in self._pool.workers:
                    self._look_after(worker)
        finally:
            for probe in self._probes:
                probe.cancel()

    def _look_after(self, worker: Worker) -> None:
        vitals = self._pool.vitals(worker)
        for exchange in tuple(vitals.exchanges):
            silence = exchange.silence_s
            if silence > self._patience.longest_s:
                exchange.lose(f"was silent for {silence:.0f} s", "silent")
            elif silence > self._suspect_after(vitals.usual_silence(exchange)):
                self._begin_probe(worker)

    def _suspect_after(self, usual_s: float) -> float:
        return max(self._patience.suspect_s, self._patience.times_usual * usual_s)

    def _begin_probe(self, worker: Worker) -> None:
        # The only one that is left is not given up: its requests have nowhere to go, and it may come back.
        if worker not in self._probing and self._pool.is_up(worker) and self._pool.has_others(worker):
            self._probing.add(worker)
            probe = asyncio.create_task(self._probe(worker))
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)

    async def _probe(self, worker: Worker) -> None:
        try:
            for _ in range(PROBES):
                if await self._lives(worker):
                    return
            log.warning("%s is silent and answers no health check; its requests go on elsewhere", worker.name)
            self._pool.mark(worker, up=False)
        finally:
            self._probing.discard(worker)

    async def _lives(self, worker: Worker) -> bool:
        timeout = aiohttp.ClientTimeout(total=self._patience.probe_s)
        try:
            async with self._session.get(f"{worker.url}/health", timeout=timeout) as response:
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
