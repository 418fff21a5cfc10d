"""Frozen is dead: who is silent for longer than usual is asked whether it lives, and given up if it does not say so.

A worker that does not answer its health check is stopped, wedged or cut off: everything that is open with it goes on
elsewhere. One that does may take its time, but not for ever: where an exchange with it is silent for much longer than
others were, in proportion to what was asked for, that request goes on elsewhere, because a connection may be dead, or a
request lost, while the worker is well. Such a request is given twice as long at the next one, and from the third on it
is waited for, so that nothing is lost where everybody is slow.

A worker that is starved, as where processors are shared, looks frozen. One that comes back after it was given up is
therefore given twice as long to say that it lives, each time: or all requests would be begun again and again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import Final

from tandem.gateway.wire.exchange import Exchange
from tandem.gateway.wire.peer import Peers
from tandem.gateway.wire.silence import LEAST_WORK
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.patience import Patience
from tandem.gateway.workers.pool import Pool

PERIOD_S: Final = 0.25
"""Between two looks at everything that is open."""
PROBES: Final = 2
"""Health checks in a row that a suspect must miss."""
MOST_TOO_SLOW: Final = 2
"""So many workers may be given up as too slow for one request."""
MOST_ALARMS: Final = 5
"""Doublings of the time for a health check: of one that was given up before and came back."""
ALARM_S: Final = 60.0
"""Seconds after which one of these is forgotten."""

log = logging.getLogger(__name__)


class StallWatch:
    """Looks after all exchanges of a pool."""

    def __init__(self, pool: Pool, peers: Peers, patience: Patience) -> None:
        self._pool = pool
        self._peers = peers
        self._patience = patience
        self._probing: set[Worker] = set()
        self._probes: set[asyncio.Task[None]] = set()
        self._alarms: dict[str, tuple[int, float]] = {}
        """By URL: how often a worker was given up of late, and when it last was."""

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
        vitals, now = self._pool.vitals(worker), time.monotonic()
        if vitals.is_suspect:
            vitals.is_suspect = False
            self._begin_probe(worker)
        for exchange in tuple(vitals.exchanges):
            try:
                self._look_at(exchange, now)
            except Exception:  # a bug that one request brings out leaves all others looked after
                log.exception("a request to %s cannot be looked after", worker.name)

    def _look_at(self, exchange: Exchange, now: float) -> None:
        worker, silences = exchange.worker, self._pool.vitals(exchange.worker).silences
        if exchange.until is not None and now >= exchange.until:
            exchange.lose("had no more time", "late")
        elif (silent_s := exchange.silence.seconds(now)) > self._patience.suspect_seconds:
            if silent_s > self._patience.times_usual * silences.usual_s(exchange.stage, exchange.silence):
                self._begin_probe(worker)
            if silent_s > self._limit_s(exchange):
                exchange.lose(f"was silent for {silent_s:.0f} s", "silent")
                self._peers.at(worker.url).close()  # connections that were free meanwhile may be as dead as this

    def _limit_s(self, exchange: Exchange) -> float:
        """How long a worker that lives may be silent."""
        longest_s = self._patience.longest_silence
        if exchange.silence.is_excused or exchange.too_slow >= MOST_TOO_SLOW:
            return longest_s
        if not self._pool.has_others(exchange.worker):
            return longest_s
        expected_s = self._expected_s(exchange)
        if expected_s is None:
            limit_s = self._patience.unknown_seconds * exchange.silence.work / LEAST_WORK
        else:
            limit_s = max(self._patience.slow_seconds, self._patience.times_expected * expected_s)
        return min(limit_s * 2.0**exchange.too_slow, longest_s)

    def _expected_s(self, exchange: Exchange) -> float | None:
        """By its worker's past, or that of its like where it has none; None where nobody has any."""
        its_own = self._pool.vitals(exchange.worker).silences.expected_s(exchange.stage, exchange.silence)
        if its_own is not None:
            return its_own
        others = (self._pool.vitals(worker).silences for worker in self._pool.workers)
        known = (silences.expected_s(exchange.stage, exchange.silence) for silences in others)
        return max((seconds for seconds in known if seconds is not None), default=None)

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
            self._alarms[worker.url] = (self._alarms_of(worker) + 1, time.monotonic())
            self._pool.mark(worker, up=False)
        finally:
            self._probing.discard(worker)

    async def _lives(self, worker: Worker) -> bool:
        try:
            timeout_s = self._patience.probe_seconds * 2.0 ** min(self._alarms_of(worker), MOST_ALARMS)
            status, _ = await self._peers.ask(worker.url, "GET", "/health", timeout_s=timeout_s, anew=True)
        except OSError:
            return False
        return status == HTTPStatus.OK

    def _alarms_of(self, worker: Worker) -> int:
        """How often it was given up of late."""
        alarms, since = self._alarms.get(worker.url, (0, 0.0))
        return max(0, alarms - int((time.monotonic() - since) / ALARM_S))
