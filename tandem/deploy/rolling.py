"""A rolling restart: one instance after the other is drained, started again and taken back, and no request fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from tandem.errors import ProcessError
from tandem.protocol.admin import WorkerState
from tandem.protocol.admin_client import AdminClient

POLL_SECONDS = 0.1
SAME_SECONDS = 60.0
"""A command may return before what it stops has ended; for so long the old process may still answer."""


@dataclass(frozen=True, kw_only=True)
class RollingRestart:
    """How instances behind a gateway are started again."""

    admin: AdminClient
    restart: Callable[[WorkerState], None]
    """Stops an instance and starts it again; need not wait until it serves."""
    say: Callable[[str], None]
    """Gets a line for every step."""
    pause: Callable[[float], None] = time.sleep
    """Waits for so many seconds; what it raises ends the whole."""
    drain_s: float = 300.0
    """Longest wait for what an instance has; what is left then goes on elsewhere."""
    start_s: float = 1800.0
    """Longest wait until it serves again; a large model takes its time to load."""

    def run(self, names: Collection[str] = ()) -> None:
        """Start those with these names again, one after the other; all without names.

        Raises:
            RequestError: The gateway refuses a step.
            ProcessError: The gateway does not answer, nobody else could serve meanwhile, or an instance did not come
                back; the others were not touched then.
        """
        there = [worker.name for worker in self.admin.topology().workers if not worker.leaving]
        for name in names or there:
            self._one(name)

    def _one(self, name: str) -> None:
        if all(worker.name == name or worker.state != "up" for worker in self.admin.topology().workers):
            raise ProcessError(f"{name}: nobody else is up to serve meanwhile; wait for another worker, or add one")
        self.say(f"draining {name}")
        self.admin.drain(name)
        left = self._wait(name, "drained", self.drain_s)
        if left.state != "drained":
            self.say(f"{name} has {left.in_flight} requests after {self.drain_s:g} s, which go on elsewhere")
        self.say(f"restarting {name}")
        self.restart(left)
        self.admin.undrain(name)
        back = self._wait(name, "up", self.start_s)
        if is_same(left, back):
            back = self._wait_for_another(left, min(self.start_s, SAME_SECONDS))
        if back.state != "up":
            why = back.remark or "look at its log"
            raise ProcessError(f"{name}: is {back.state} {self.start_s:g} s after its restart: {why}")
        self.say(f"{name} serves again")

    def _wait(self, name: str, state: str, limit_s: float) -> WorkerState:
        """The worker once it is in a state, or when the time is over."""
        until = time.monotonic() + limit_s
        while (worker := self._find(name)).state != state and time.monotonic() < until:
            self.pause(POLL_SECONDS)
        return worker

    def _wait_for_another(self, left: WorkerState, limit_s: float) -> WorkerState:
        """The worker once another process has taken its place and serves."""
        until = time.monotonic() + limit_s
        while is_same(left, back := self._wait(left.name, "up", self.start_s)):
            if time.monotonic() > until:
                raise ProcessError(f"{left.name}: the process is the one of before; does the command restart it?")
            self.pause(POLL_SECONDS)
        return back

    def _find(self, name: str) -> WorkerState:
        for worker in self.admin.topology().workers:
            if worker.name == name and not worker.leaving:
                return worker
        raise ProcessError(f"{name}: was taken out of the gateway meanwhile; add it again")


def is_same(one: WorkerState, other: WorkerState) -> bool:
    """Whether it is one process that has told who it is both times."""
    return one.engine_id is not None and one.engine_id == other.engine_id
