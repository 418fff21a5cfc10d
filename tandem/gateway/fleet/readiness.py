"""The start of a gateway that knows who must be there: it waits for everybody, and tries every way a request may go.

Before that it listens and answers `/health`, and refuses requests with 503.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tandem.errors import ProcessError, UsageError
from tandem.gateway.delivery.legs import Legs
from tandem.gateway.fleet.trial import why_not
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.health import HealthWatch
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.route import Route

REMINDER_S: Final = 10.0
"""Seconds between two lines about the same wait."""

log = logging.getLogger(__name__)


class Readiness:
    """Opens a pool when all of it works."""

    def __init__(self, *, pool: Pool, watch: HealthWatch, legs: Legs, period_s: float) -> None:
        self._pool = pool
        self._watch = watch
        self._legs = legs
        self._period_s = period_s
        self._told = ""
        self._told_at = 0.0

    async def reach(self, timeout_s: float | None) -> None:
        """Wait until every worker is up and one hand-off of each pair has succeeded, then open the pool.

        Args:
            timeout_s: Longest wait, in seconds; None waits for ever.

        Raises:
            UsageError: Somebody else than expected answers at a worker's address.
            ProcessError: The time is over; the message says what was waited for.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._everybody()
                for prefill, decode in self._pool.pairs:
                    await self._first_hand_off(prefill, decode)
        except TimeoutError:
            raise ProcessError(
                f"gateway: not ready after {timeout_s:g} s: {self._told}; see the logs, or allow more time"
            ) from None
        self._pool.is_open = True
        log.info("ready: every prefill instance has handed over to every decode instance")

    async def _everybody(self) -> None:
        while True:
            if strangers := self._watch.strangers:
                raise UsageError("; ".join(strangers))
            waiting = [self._waited_for(one) for one in self._pool.workers if not self._pool.is_up(one)]
            if not waiting:
                return
            self._tell(f"waiting for {', '.join(waiting)}")
            await asyncio.sleep(self._period_s)

    def _waited_for(self, worker: Worker) -> str:
        remark = self._watch.known(worker).remark
        return f"{worker.name} at {worker.url}{f' ({remark})' if remark else ''}"

    async def _first_hand_off(self, prefill: Worker, decode: Worker) -> None:
        self._tell(f"trying the hand-off from {prefill.name} to {decode.name}")
        while not await self._hands_over(prefill, decode):
            await asyncio.sleep(self._period_s)
            await self._everybody()

    async def _hands_over(self, prefill: Worker, decode: Worker) -> bool:
        why = await why_not(self._legs, Route(prefill, decode, "apart"))
        if why is not None:
            self._tell(f"{prefill.name} does not hand over to {decode.name} yet: {why}")
            return False
        log.info("%s hands over to %s", prefill.name, decode.name)
        return True

    def _tell(self, line: str) -> None:
        now = asyncio.get_running_loop().time()
        if line != self._told or now - self._told_at >= REMINDER_S:
            self._told, self._told_at = line, now
            log.info("%s", line)
