"""The processes of an instance's other ranks, as the first rank sees them: started, watched, told, killed.

If one ends by itself the others are killed: whatever waits for it in a collective then fails at once.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from tandem.engine.channel import Channel
from tandem.engine.rank import Meeting, Report, Task
from tandem.engine.step import Step
from tandem.errors import ProcessError
from tandem.protocol.lifeline import Lifeline

PATIENCE = 2.0
"""Seconds in which a death becomes known after connections broke."""
STDERR = 2


class Follower:
    """One process.

    Args:
        name: How errors call it.
        descriptors: That it inherits.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self, name: str, descriptors: Collection[int]) -> None:
        self.name = name
        self._lifeline = Lifeline()
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        try:
            with theirs:
                self.process = _process(theirs.fileno(), self._lifeline, descriptors)
        except OSError:
            self.close()
            raise
        self._lifeline.handed_over()

    def death(self) -> ProcessError:
        """Wait for its end; returns the error that tells how it came."""
        code = self.process.wait()
        how = f"exit code {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"killed by {signal.Signals(-code).name}"
        return ProcessError(f"{self.name} died ({how}); restart the instance; its messages are in the instance's log")

    def close(self) -> None:
        """Let go of it."""
        self.channel.close()
        self._lifeline.close()


class Followers:
    """All of them.

    Args:
        tasks: One for each.
        descriptors: That they inherit.
        on_death: Called when one has died, from a thread of its own and before `watch`'s, to free who waits for it.

    Raises:
        ProcessError: One cannot be started.
    """

    def __init__(self, tasks: Sequence[Task], descriptors: Collection[int], on_death: Callable[[], object]) -> None:
        self._changed = threading.Condition()
        self._loaded = 0
        self._death: ProcessError | None = None
        self._closing = False
        self._on_death = on_death
        self._tell: Callable[[ProcessError], object] = lambda _: None
        self._all: list[Follower] = []
        self._watchers: list[threading.Thread] = []
        try:
            for task in tasks:
                self._start(task, descriptors)
        except OSError as error:
            self.close()
            raise ProcessError(
                f"--tensor-parallel-size {len(tasks) + 1}: a rank's process cannot be started ({error.strerror}); "
                "lower it, or let the system have more processes and memory"
            ) from None

    def check(self) -> None:
        """Raise the death that is known, if one is.

        Raises:
            ProcessError: One has died or failed.
        """
        if self._death is not None:
            raise self._death

    def wait_until_loaded(self) -> None:
        """Wait until each has loaded its part.

        Raises:
            ProcessError: One has died or failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._death or self._loaded == len(self._all))
        self.check()

    def alongside(self, work: Callable[[], None]) -> None:
        """Do what waits for all of them, in another thread, which is left behind when one dies.

        Raises:
            ProcessError: One has died, or the work raised it; likewise OSError.
        """
        outcome: list[OSError | ProcessError | None] = []

        def run() -> None:
            error = None
            try:
                work()
            except (OSError, ProcessError) as raised:
                error = raised
            with self._changed:
                outcome.append(error)
                self._changed.notify_all()

        threading.Thread(target=run, name="ranks", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self._death or outcome)
        self.check()
        if error := outcome[0]:
            raise self.cause(error)

    def send(self, message: Meeting | Step) -> None:
        """Have all join or compute a step.

        Raises:
            OSError: One is gone.
        """
        for follower in self._all:
            follower.channel.send(message)

    def cause(self, error: Exception) -> Exception:
        """Why something with all ranks failed: a death that becomes known soon, or the error itself."""
        with self._changed:
            self._changed.wait_for(lambda: self._death or self._closing, PATIENCE)
        return self._death or error

    def watch(self, tell: Callable[[ProcessError], object]) -> None:
        """Have a death told, once, from a thread of its own; at once if there was one."""
        with self._changed:
            self._tell = tell
            death = self._death
        if death is not None:
            tell(death)

    def close(self) -> None:
        """Kill all; nothing is told from now on. May be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._kill()
        for watcher in self._watchers:
            if watcher is not threading.current_thread():
                watcher.join()

    def _start(self, task: Task, descriptors: Collection[int]) -> None:
        follower = Follower(f"rank {task.rank} of {task.ranks}", descriptors)
        self._all.append(follower)
        watcher = threading.Thread(target=self._follow, args=(follower, task), name=follower.name, daemon=True)
        self._watchers.append(watcher)
        watcher.start()

    def _follow(self, follower: Follower, task: Task) -> None:
        """One thread for each: its task, its report, its end."""
        with suppress(OSError):  # it died already
            follower.channel.send(task)
        report = follower.channel.receive(Report)
        if report is not None and report.error is not None:
            self._failed(ProcessError(f"{follower.name}: {report.error}"))
        elif report is not None:
            with self._changed:
                self._loaded += 1
                self._changed.notify_all()
        self._failed(follower.death())
        follower.close()

    def _failed(self, error: ProcessError) -> None:
        with self._changed:
            if self._closing or self._death is not None:
                return
            self._death = error
            tell = self._tell
            self._changed.notify_all()
        self._kill()
        self._on_death()
        tell(error)

    def _kill(self) -> None:
        for follower in self._all:
            follower.process.kill()


def _process(channel: int, lifeline: Lifeline, descriptors: Collection[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tandem.engine.rank", str(channel)],
        stdin=subprocess.DEVNULL,
        stdout=STDERR,
        start_new_session=True,  # Ctrl-C reaches the first rank alone, which ends the others
        pass_fds=(channel, lifeline.descriptor, *descriptors),
        env={**os.environ, **lifeline.environment},
    )
