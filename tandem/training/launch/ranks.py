"""This host's ranks as processes: each runs the same command, and is told its place in its environment.

    this process ──┬──▶ rank 0    the terminal is its; see process_log.py
                   ├──▶ rank 1    log in <logs>/run_log-<hosts>-1.txt
                   └──▶ …

One that fails ends them all: the others wait for it in a collective. Ctrl-C, SIGTERM and SIGHUP are passed on, so that
the step under way is finished and kept; a second one, unless it came together with the first, ends them at once. If
this process is killed, they end by their lifelines.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Final

from tandem.errors import ProcessError, UsageError
from tandem.parallel.place import Place
from tandem.protocol.lifeline import Lifeline
from tandem.training.guard.diagnosis import HUNG, collect
from tandem.training.interruption import Wish, handled
from tandem.training.launch.process_log import log_path
from tandem.training.settings.config import Launch

if TYPE_CHECKING:
    from tandem.parallel.device import DeviceName

DEFAULT_PORT: Final = 6000
"""The documents' MASTER_PORT."""
LAST_LINES: Final = 12
"""Of a failed rank's log, in the error."""
GRACE_S: Final = 10.0
"""For the other ranks to say what they know, once one has failed."""
LOOK_S: Final = 0.1
PEER_LOST: Final = 75
"""Exit code of a rank that only failed because another one did (EX_TEMPFAIL)."""
STOPPED: Final = 130
"""Exit code of a rank that was told to stop, and did."""


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Where this host stands among the hosts of a run, as a checked `Launch` says."""

    ranks: int = 1
    """Of each host."""
    count: int = 1
    rank: int = 0
    master: str = "localhost"
    port: int = DEFAULT_PORT

    @classmethod
    def of(cls, launch: Launch, device: DeviceName) -> Hosts:
        """As a run says; where it does not, one rank for each device of this host, and on CPUs one in all."""
        return cls(ranks=launch.ranks or _devices(device), count=launch.nodes, rank=launch.node_rank,
                   master=launch.master_addr, port=launch.master_port)  # fmt: skip

    @property
    def needs_processes(self) -> bool:
        """Whether one process is not enough."""
        return self.ranks * self.count > 1

    def place(self, local_rank: int, file: int) -> Place:
        """Of one of this host's ranks, which meet in an open file they inherit where there are no other hosts."""
        meeting = f"file:/proc/self/fd/{file}" if self.count == 1 else f"tcp:{self.master}:{self.port}"
        rank = self.rank * self.ranks + local_rank
        return Place(rank=rank, ranks=self.ranks * self.count, local_rank=local_rank, meeting=meeting)


def _devices(device: DeviceName) -> int:
    if device == "cpu":
        return 1
    from tandem.parallel.device import choose_device, device_count

    return device_count(choose_device(device))


@dataclass
class Rank:
    """One process."""

    place: Place
    process: subprocess.Popen[bytes]
    log: Path
    """Where its output is; of rank 0, whose output is the terminal's, what it wrote down."""
    lifeline: Lifeline = field(repr=False)

    @property
    def code(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it runs."""
        return self.process.poll()

    @property
    def story(self) -> str:
        """How it ended, with the end of its log."""
        assert self.code is not None
        how = f"was ended by {signal.Signals(-self.code).name}" if self.code < 0 else f"ended with code {self.code}"
        if not self.log.exists() or (self.place.rank == 0 and self.code > 0):  # which the terminal has
            return f"rank {self.place.rank} {how}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "\n  ".join([f"rank {self.place.rank} {how}; the end of {self.log}:", *lines])


def run_ranks(command: Sequence[str], hosts: Hosts, logs: Path) -> None:
    """Run a command as every rank of this host, and return when all have ended well.

    Args:
        command: What each rank runs.
        hosts: Where this host stands.
        logs: Folder of the ranks' logs.

    Raises:
        ProcessError: A rank failed; the message names the one that failed first, and what it said last.
        KeyboardInterrupt: They were told to stop, and did.
        UsageError: The system is not Linux.
    """
    if not hasattr(os, "memfd_create"):
        raise UsageError(
            "several ranks meet in memory without a name, which Linux has and this system has not; train on one rank "
            "(--ranks 1), or on Linux"
        )
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("rank_*.hang.json"):
        old.unlink()
    # In memory and without a name: nothing of it stays behind, however all of them end.
    with os.fdopen(os.memfd_create("meeting")) as meeting, ExitStack() as stack:
        ranks = [stack.enter_context(_started(command, hosts, i, meeting.fileno(), logs)) for i in range(hosts.ranks)]
        with passed_on(ranks) as wish:
            _wait(ranks)
        failed = [rank for rank in ranks if rank.code]
        # One rank alone may have been told, too: then all have stopped after the step that it had under way.
        if wish or (failed and all(rank.code == STOPPED for rank in failed)):
            raise KeyboardInterrupt
        if failed:
            raise ProcessError(f"{_story(failed, logs)}\nthe other ranks were ended; the same command goes on")


def _wait(ranks: Sequence[Rank]) -> None:
    """Until all have ended; once one has failed, the others have a little time."""
    deadline: float | None = None
    while any(rank.code is None for rank in ranks):
        if deadline is None and any(rank.code for rank in ranks):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(LOOK_S)


def _story(failed: Sequence[Rank], logs: Path) -> str:
    """What is known of the failure: of a hang what all ranks' reports say, else what the culprit said last."""
    if any(rank.code == HUNG for rank in failed) and (hang := collect(logs)) is not None:
        return f"the run hangs: {hang}\nstacks are in {logs}"
    return _culprit(failed).story


def _culprit(failed: Sequence[Rank]) -> Rank:
    """Who failed by itself: ended by a signal that was not ours, or with a code that blames no other and is no stop."""
    own = [rank for rank in failed if rank.code not in (PEER_LOST, STOPPED)]
    killed = [rank for rank in own if rank.code is not None and rank.code < 0]
    return (killed or own or list(failed))[0]


@contextmanager
def _started(command: Sequence[str], hosts: Hosts, local_rank: int, meeting: int, logs: Path) -> Iterator[Rank]:
    place, lifeline = hosts.place(local_rank, meeting), Lifeline()
    log = log_path(logs, hosts.count, place.rank)
    with ExitStack() as stack:
        stack.callback(lifeline.close)
        output: IO[bytes] | None = stack.enter_context(log.open("ab")) if place.rank else None
        process = subprocess.Popen(
            list(command),
            env=os.environ | place.environment | lifeline.environment,
            pass_fds=(lifeline.descriptor, meeting),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        lifeline.handed_over()
        try:
            yield Rank(place=place, process=process, log=log, lifeline=lifeline)
        finally:
            process.kill()
            process.wait()


@contextmanager
def passed_on(ranks: Sequence[Rank]) -> Iterator[Wish]:
    """Pass signals that ask for an end on to the ranks, a second wish as SIGKILL; yields whether any came."""
    wish = Wish()

    def pass_on(number: int, frame: FrameType | None) -> None:
        sent = signal.SIGKILL if wish.repeated() else signal.SIGTERM
        for rank in ranks:
            if rank.code is None:
                rank.process.send_signal(sent)

    with handled(pass_on):
        yield wish
