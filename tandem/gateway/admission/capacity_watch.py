"""Looks how full decode workers are: a background task that reads their `/metrics`, in the rhythm of health checks."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from itertools import count
from typing import Final

from tandem.gateway.wire.peer import Peers
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.capacity import Occupancy
from tandem.gateway.workers.pool import Pool

TIMEOUT_S: Final = 2.0
STEPS: Final = 10
"""In a period."""

log = logging.getLogger(__name__)


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
        self._asking: set[Worker] = set()

    async def run(self) -> None:
        """Look for ever, at each once per period, and at who has come up at once; cancel the task to end it."""
        async with asyncio.TaskGroup() as looks:
            for step in count():
                await asyncio.sleep(self._period_s / STEPS)
                for worker in self._due(step % STEPS):
                    looks.create_task(self._look_at(worker))

    async def look(self) -> None:
        """Ask every worker that decodes once, all at the same time."""
        await asyncio.gather(*map(self._look_at, self._decoding()))

    def _decoding(self) -> list[Worker]:
        return [one for one in self._pool.workers if one.role != "prefill" and self._pool.is_up(one)]

    def _due(self, step: int) -> list[Worker]:
        """Of many workers, all pages at once would hold up every request; who does not answer holds up nobody."""
        decoding = enumerate(self._decoding())
        due = [one for i, one in decoding if i % STEPS == step or not self._pool.vitals(one).capacity.is_read]
        return [one for one in due if one not in self._asking]

    async def _look_at(self, worker: Worker) -> None:
        self._asking.add(worker)
        try:
            await self._ask(worker)
        except Exception:  # a bug that one worker's answer brings out leaves all others looked after
            log.exception("%s could not be asked for its room", worker.name)
        finally:
            self._asking.discard(worker)

    async def _ask(self, worker: Worker) -> None:
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
