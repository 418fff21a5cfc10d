"""The tries at one answer: who is out after a failure, how often everybody may be asked again, and what that costs."""

from __future__ import annotations

import asyncio
from typing import Final

from tandem.errors import RequestError
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.record import Record
from tandem.gateway.wire.exchange import WorkerError
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.budget import Retry, RetryBudget
from tandem.gateway.workers.pool import Pool

ROUNDS: Final = 4
"""So often everybody may be tried."""
PAUSE_S: Final = 0.2
"""Before the second round; doubled before each further one."""


class Tries:
    """Of one request; `end` must follow.

    Args:
        pool: Who can be tried.
        budget: Of retries.
        metrics: They are counted there.
    """

    def __init__(self, pool: Pool, budget: RetryBudget, metrics: GatewayMetrics) -> None:
        self._pool = pool
        self._budget = budget
        self._metrics = metrics
        self._rounds = 1
        self._last: WorkerError | None = None
        self._retry: Retry | None = None
        self.failed: set[Worker] = set()
        """In this round."""

    def failure(self, error: WorkerError) -> None:
        """Who failed is out for this round."""
        self.succeed()
        self._last = error
        self.failed.add(error.worker)

    async def next(self, record: Record) -> None:
        """Wait for a turn to try again, in the next round when all have failed in this one.

        Raises:
            WorkerError: There have been enough of them.
        """
        assert self._last is not None
        if not self._pool.has_candidates(self.failed):
            if self._rounds == ROUNDS:
                raise self._last
            await asyncio.sleep(PAUSE_S * 2 ** (self._rounds - 1))
            self._rounds += 1
            self.failed.clear()
        self._metrics.retried(self._last.worker)
        with record.queued():
            self._retry = await self._budget.retry()

    @property
    def in_vain(self) -> RequestError:
        """Why there is nobody to try."""
        return self._last or RequestError("nobody can serve this request now; try again shortly", status=503)

    def succeed(self) -> None:
        """The answer comes, or nobody waits for it: this is no retry any more."""
        if self._retry is not None:
            self._retry.end()
            self._retry = None
