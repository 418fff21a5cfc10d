"""Who is up: a background task that asks every worker's `/health` once a second."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import aiohttp

from tandem.gateway.pool import Pool, Worker

TIMEOUT_S: Final = 2.0
MISSES_TO_DOWN: Final = 3
"""Checks in a row that must fail before a worker that was up counts as down: a busy instance may answer one late."""

log = logging.getLogger(__name__)


class HealthWatch:
    """Keeps a pool's idea of who is up true."""

    def __init__(self, pool: Pool, session: aiohttp.ClientSession, period_s: float) -> None:
        self._pool = pool
        self._session = session
        self._period_s = period_s
        self._misses: dict[str, int] = {}

    async def run(self) -> None:
        """Check for ever, once per period; cancel the task to end it."""
        while True:
            await self.check()
            await asyncio.sleep(self._period_s)

    async def check(self) -> None:
        """Ask every worker once, all at the same time, and mark the pool."""
        await asyncio.gather(*map(self._check, self._pool.workers))

    async def _check(self, worker: Worker) -> None:
        healthy = await self._answers(worker)
        misses = 0 if healthy else self._misses.get(worker.name, 0) + 1
        self._misses[worker.name] = misses
        up = healthy or (self._pool.is_up(worker) and misses < MISSES_TO_DOWN)
        if up != self._pool.is_up(worker):
            log.info("%s is %s", worker.name, "up" if up else "down")
        self._pool.mark(worker, up=up)

    async def _answers(self, worker: Worker) -> bool:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with self._session.get(f"{worker.url}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
