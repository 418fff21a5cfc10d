"""Whoever is added or taken back gets no requests before one hand-off with somebody who serves has succeeded."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tandem.gateway.delivery.legs import Legs
from tandem.gateway.fleet.trial import trial_request, why_not
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.route import Kind, Route
from tandem.protocol.identity import Role

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""Between two rounds of failed trials; doubled with each, up to this."""
ALONE: Final[dict[Role, Kind]] = {"prefill": "prefill-alone", "decode": "decode-alone", "both": "both"}
DEMAND: Final = trial_request("trial").demand

log = logging.getLogger(__name__)


class Probation:
    """Tries out the workers of a pool that are on trial."""

    def __init__(self, pool: Pool, legs: Legs) -> None:
        self._pool = pool
        self._legs = legs
        self._under_way: dict[Worker, asyncio.Task[None]] = {}
        self._why: dict[Worker, str] = {}

    def remark(self, worker: Worker) -> str:
        """Why a worker is not admitted; empty where nothing has gone wrong."""
        return self._why.get(worker, "")

    def look(self) -> None:
        """Begin to try whoever is on trial and up."""
        self._under_way = {worker: task for worker, task in self._under_way.items() if not task.done()}
        for worker in self._pool.workers:
            if self._is_due(worker) and worker not in self._under_way:
                self._under_way[worker] = asyncio.create_task(self._try(worker))

    async def stop(self) -> None:
        """End all trials."""
        tasks = tuple(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_due(self, worker: Worker) -> bool:
        vitals = self._pool.vitals(worker)
        return vitals.is_on_trial and vitals.is_up and not vitals.is_draining

    async def _try(self, worker: Worker) -> None:
        """One partner after the other, round after round, until one hand-off succeeds or there is nobody to try."""
        pause_s, tried = FIRST_PAUSE_S, set[Worker]()
        while self._is_due(worker):
            if (route := self._route(worker, tried)) is None:
                await asyncio.sleep(pause_s)
                pause_s, tried = min(2 * pause_s, LONGEST_PAUSE_S), set()
                continue
            why = await why_not(self._legs, route)
            if why is None:
                self._admit(worker, route)
                return
            self._why[worker] = f"{_how(route)}: {why}"
            log.warning("%s gets no requests, because it fails to serve %s", worker.name, self._why[worker])
            tried |= route.workers
        self._why.pop(worker, None)

    def _route(self, worker: Worker, tried: set[Worker]) -> Route | None:
        """With a partner that serves and goes with it; by itself where there has never been one."""
        role: Role = "decode" if worker.role == "prefill" else "prefill"
        partner = self._pool.choose(role, DEMAND, tried, partner=worker)
        if partner is not None:
            return Route(worker, partner, "apart") if role == "decode" else Route(partner, worker, "apart")
        return None if tried else Route(worker, worker, ALONE[worker.role])

    def _admit(self, worker: Worker, route: Route) -> None:
        self._why.pop(worker, None)
        self._pool.admit(worker)
        log.info("%s serves: it has answered %s", worker.name, _how(route))


def _how(route: Route) -> str:
    return f"with {route.prefill.name} and {route.decode.name}" if route.kind == "apart" else "alone"
