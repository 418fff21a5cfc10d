"""Looks how full decode workers are: a background task that reads their `/metrics`, in the rhythm of health checks."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from itertools import count
from typing import Final

from tandem.gateway.capacity import Occupancy
from tandem.gateway.peer import Peers
from tandem.gateway.pool import Pool
from tandem.gateway.worker import Worker

TIMEOUT_S: Final = 2.0
STEPS: Final = 10
"""In a period, to see who has come up."""


class CapacityWatch:
    """Keeps a pool's idea of room true.

    Args:
        pool: What to keep true.
        peers: To ask with.
        period_s: Seconds between two looks at a worker.
    """

    def __init__(self, pool: Pool, peers: Peers, period_s: float) -> None:
        self._pool = pool
        self._peers = peers
        self._period_s = period_s

    async def run(self) -> None:
        """Look for ever, once per period, and sooner at who has come up; cancel the task to end it."""
        for step in count(1):
            await asyncio.sleep(self._period_s / STEPS)
            await self.look(unread_only=step % STEPS != 0)

    async def look(self, *, unread_only: bool = False) -> None:
        """Ask every worker that decodes once, all at the same time."""
        decoding = (worker for worker in self._pool.workers if worker.role != "prefill" and self._pool.is_up(worker))
        asked = [one for one in decoding if not (unread_only and self._pool.vitals(one).capacity.is_read)]
        await asyncio.gather(*map(self._look_at, asked))

    async def _look_at(self, worker: Worker) -> None:
        """Who does not answer at all keeps what is known of it: it is busy, or will be down."""
        vitals = self._pool.vitals(worker)
        before = vitals.load.tokens
        status, page = await self._page(worker)
        if status == 0 and vitals.capacity.is_read:
            return
        found = Occupancy.read(page) if status == HTTPStatus.OK else None
        if found is None:
            vitals.capacity.unknown()
        else:  # what began or ended while it was asked may be in its answer
            vitals.capacity.learn(found, max(before, vitals.load.tokens), vitals.begun_tokens)
        self._pool.on_change()

    async def _page(self, worker: Worker) -> tuple[int, bytes]:
        """Status and body; status 0 if there is no answer."""
        try:
            return await self._peers.ask(worker.url, "GET", "/metrics", timeout_s=TIMEOUT_S)
        except OSError:
            return 0, b""
