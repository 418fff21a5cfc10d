"""The pool kept as a roster says: who is new is tried out first, who leaves finishes what it has."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tandem.errors import RequestError, UsageError
from tandem.gateway.door.keys import Keys
from tandem.gateway.fleet.probation import Probation
from tandem.gateway.fleet.roster import Roster
from tandem.gateway.processes.board import Counter
from tandem.gateway.processes.commons import Commons
from tandem.gateway.wire.worker import Worker
from tandem.gateway.wire.worker_access import WorkerAccess
from tandem.gateway.workers.pool import Pool

TOPIC: Final = "roster"
PERIOD_S: Final = 0.25
"""Between two looks at who is new and who leaves."""
TRIES: Final = 8
"""So often a change is made anew because another process made one first."""
QUIET_S: Final = 1.0
"""A worker is drained when it has had nothing to do for so long: between two legs of a request it has nothing open."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChangeConfig:
    """How the workers may change while the gateway runs.

    Raises:
        UsageError: A wait that cannot be.
    """

    admin_keys: Keys | None = None
    """Who may change them over HTTP; None: nobody, and there is no such address."""
    topology: Path | None = None
    """A topology file that says who they are, and is watched."""
    drain_s: float = 300.0
    """Longest wait for what a worker has, when it is to leave; what is left then goes on elsewhere."""

    def __post_init__(self) -> None:
        if not self.drain_s >= 0:
            raise UsageError(f"drain_seconds: {self.drain_s:g} s is no time to wait; choose 0 or more")


class Fleet:
    """The workers as they are and as they shall be.

    Args:
        pool: What to change; it has the roster's workers.
        roster: Who shall serve from the start.
        probation: Tries out who is new.
        access: How workers are spoken to, which an address may rule out.
        drain_s: Longest wait for what a worker has when it leaves.
        commons: What the processes of the gateway share.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        pool: Pool,
        roster: Roster,
        probation: Probation,
        *,
        access: WorkerAccess,
        drain_s: float,
        commons: Commons | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.roster = roster
        self._pool = pool
        self._probation = probation
        self._access = access
        self._drain_s = drain_s
        commons = commons or Commons()
        self._bus, self._board, self._speaks = commons.bus, commons.board, commons.speaks
        self._is_told = False
        self._changing = asyncio.Lock()
        self._proposed: Roster | None = None
        self._is_taken = False
        self._open: dict[Worker, Counter] = {}
        self._clock = clock
        self._leaving: dict[Worker, float] = {}
        self._quiet_since: dict[Worker, float] = {}

    @property
    def leaving(self) -> tuple[Worker, ...]:
        """Who is no longer on the roster and finishes what it has."""
        return tuple(self._leaving)

    @property
    def leaving_names(self) -> frozenset[str]:
        """Of them."""
        return frozenset(worker.name for worker in self._leaving)

    async def start(self) -> None:
        """Listen to the other processes of the gateway: all of them follow the same roster, that of the first one."""
        self._bus.subscribe(TOPIC, lambda body: self.adopt(msgspec.json.decode(body, type=Roster)))
        if self._speaks:
            await self._bus.tell(TOPIC, msgspec.json.encode(self.roster))

    async def change(self, verb: Callable[[Roster], Roster]) -> None:
        """Make the roster the next one, in all processes.

        Raises:
            RequestError: What the verb raises, or 400 for an address that may not be, or 409 when other processes were
                faster again and again; nothing has changed.
        """
        async with self._changing:
            for _ in range(TRIES):
                wanted = verb(self.roster)
                if wanted is self.roster:
                    return
                self._check(wanted)
                self._proposed, self._is_taken = wanted, False
                await self._bus.tell(TOPIC, msgspec.json.encode(wanted))
                if self._is_taken:  # the next one may be there already
                    return
                await self._remind()
        raise RequestError("the workers are being changed by others, too; try again", status=409, code="stale_epoch")

    async def _remind(self) -> None:
        """Tell the roster in use again: a message that changed nothing was the last one, which late processes hear."""
        told = None
        while told is not self.roster:
            told = self.roster
            await self._bus.tell(TOPIC, msgspec.json.encode(told))

    def _check(self, roster: Roster) -> None:
        try:
            self._access.check_urls(tuple(worker.url for worker in roster.workers))
        except UsageError as error:
            raise RequestError(str(error), param="url") from None

    def adopt(self, roster: Roster) -> None:
        """Make the pool what a roster says; one that is not newer than what was told before changes nothing."""
        if self._is_told and roster.epoch <= self.roster.epoch:
            return
        self._is_told = True
        self._is_taken |= roster == self._proposed
        self.roster = roster
        known = set(self._pool.workers)
        for worker in roster.workers:
            self._keep(worker, is_new=worker not in known, draining=worker.name in roster.draining)
        for worker in set(self._pool.workers) - set(roster.workers):
            self._let_go(worker, hurried=worker.name in roster.hurried)
        names = (f"{one.name} (draining)" if one.name in roster.draining else one.name for one in roster.workers)
        log.info("epoch %d: %s", roster.epoch, ", ".join(names))
        self.look()

    async def run(self) -> None:
        """Look for ever; cancel the task to end it."""
        try:
            while True:
                await asyncio.sleep(PERIOD_S)
                self.look()
        finally:
            await self._probation.stop()

    def look(self) -> None:
        """Try out who is new and up; take out who is done, or has had its time."""
        now = self._clock()
        in_flight = self._pool.in_flight()
        for worker in self._pool.workers:
            self._count(worker, in_flight[worker])
            if self._pool.vitals(worker).is_draining and not self.in_flight(worker):
                self._quiet_since.setdefault(worker, now)
            else:
                self._quiet_since.pop(worker, None)
        for worker, until in tuple(self._leaving.items()):
            if now >= until or self.is_drained(worker):
                self._take_out(worker)
        self._probation.look()

    def in_flight(self, worker: Worker) -> int:
        """What all processes have open with a worker, or elsewhere and need it for, when they looked last."""
        return int(self._open[worker].total) if worker in self._open else 0

    def is_drained(self, worker: Worker) -> bool:
        """Whether a worker that gets no further requests has none left."""
        since = self._quiet_since.get(worker)
        return since is not None and self._clock() - since >= QUIET_S

    def _count(self, worker: Worker, in_flight: int) -> None:
        counter = self._open.setdefault(worker, self._board.counter(f"{worker.name} {worker.url} open"))
        counter.add(in_flight - counter.own)

    def _keep(self, worker: Worker, *, is_new: bool, draining: bool) -> None:
        if is_new:
            self._pool.add(worker)
            self._pool.try_out(worker)
        elif self._pool.vitals(worker).is_draining and not draining:
            self._pool.try_out(worker)
        self._leaving.pop(worker, None)
        self._pool.drain(worker) if draining else self._pool.undrain(worker)

    def _let_go(self, worker: Worker, *, hurried: bool) -> None:
        self._pool.drain(worker)
        now = self._clock()
        self._leaving.setdefault(worker, now + self._drain_s)
        if hurried:
            self._leaving[worker] = now

    def _take_out(self, worker: Worker) -> None:
        left = self._pool.in_flight()[worker]
        del self._leaving[worker]
        self._open.pop(worker, None)
        self._quiet_since.pop(worker, None)
        self._pool.remove(worker)
        log.info("%s is out%s", worker.name, f"; {left} of its requests go on elsewhere" if left else "")
