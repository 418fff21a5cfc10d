"""A child process that can be killed, frozen and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tandem.protocol.lifeline import Lifeline

TESTS = Path(__file__).parents[2]
STOP_S = 5.0
"""For a process to end by itself, once asked."""


def with_tests(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a Python finds this package, wherever the kit was started."""
    known = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join([str(TESTS), *([known] if known else [])])}


@dataclass(eq=False)
class Process:
    """A command that stays the same over several starts."""

    name: str
    command: list[str]
    logs: Path
    starts: int = 0
    frozen: bool = False
    condemned: bool = False
    """It was killed or asked to stop."""
    _child: subprocess.Popen[bytes] | None = None
    _lifeline: Lifeline = field(default_factory=Lifeline)

    @property
    def log(self) -> Path:
        return self.logs / f"{self.name}.{self.starts}.log"

    @property
    def pid(self) -> int:
        """Of the one that was started last."""
        assert self._child is not None
        return self._child.pid

    @property
    def ended(self) -> int | None:
        """The exit status; None while it runs."""
        return self._child.poll() if self._child is not None else None

    @property
    def alive(self) -> bool:
        """Whether it runs and is not frozen."""
        return self._child is not None and self.ended is None and not self.frozen

    def start(self) -> None:
        """Start it, in a group of its own, so that its children end with it."""
        self.starts += 1
        self.frozen = self.condemned = False
        self._lifeline = Lifeline()
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=with_tests(os.environ) | self._lifeline.environment,
                pass_fds=[self._lifeline.descriptor],
                start_new_session=True,
            )
        self._lifeline.handed_over()

    def kill(self) -> None:
        """SIGKILL; the kernel resets or closes what it had open."""
        self.condemned = True
        if self._child is not None and self.ended is None:  # else its number may be somebody else's by now
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._lifeline.close()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay open, the kernel goes on accepting new ones."""
        assert self._child is not None
        self.frozen = True
        os.killpg(self._child.pid, signal.SIGSTOP)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        self.condemned = True
        if self._child is not None and self.ended is None:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._child.wait, STOP_S)
        self.kill()
