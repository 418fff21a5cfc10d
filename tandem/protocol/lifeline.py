"""The pipe between a parent and its child, so that even a SIGKILL of the parent leaves no orphan.

    parent                                   child
    Lifeline()  ── write end, kept ────────► read end, TANDEM_LIFELINE_FD
                                             hold_lifeline(): a thread that reads until the pipe ends

Nothing is ever written. The kernel closes the write end when the parent ends in whatever way, and the child's read
returns. The write end is closed on exec, so no other child keeps it open; a parent that forks without exec would.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
import time
from typing import NoReturn

from tandem.errors import ProcessError

LIFELINE_VARIABLE = "TANDEM_LIFELINE_FD"
"""Environment variable with the number of the read end in the child."""

WATCH_SECONDS = 1.0
"""Between two looks of a watcher at whether the process it watches over still runs."""

GRACE = 5.0
"""Seconds a child has to end in order after its parent is gone."""


class Lifeline:
    """The parent's side; give `descriptor` to the child as `pass_fds` and `environment` into its environment."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()

    @property
    def descriptor(self) -> int:
        """Number of the read end, the same in parent and child."""
        return self._read_end

    @property
    def environment(self) -> dict[str, str]:
        """What the child needs in its environment."""
        return {LIFELINE_VARIABLE: str(self._read_end)}

    def handed_over(self) -> None:
        """Close the parent's copy of the read end; call when the child was started."""
        self._read_end = closed(self._read_end)

    def close(self) -> None:
        """Let go: the child ends in order if it still runs. May be called again."""
        self._read_end = closed(self._read_end)
        self._write_end = closed(self._write_end)


def closed(descriptor: int) -> int:
    """Close a descriptor once; returns -1, which stands for a closed one."""
    if descriptor >= 0:
        os.close(descriptor)
    return -1


def hold_lifeline(grace: float = GRACE) -> bool:
    """Watch the parent's pipe in a daemon thread; end this process when the parent is gone.

    The end is SIGTERM to this process and, if it still lives after the grace, `os._exit(1)`. The variable is taken
    out of the environment, because this process's own children do not have the pipe.

    Args:
        grace: Seconds between the two.

    Returns:
        Whether there is a lifeline; without the variable nothing is done.

    Raises:
        ProcessError: When the variable does not name an open pipe.
    """
    descriptor = _take_descriptor()
    if descriptor is None:
        return False
    threading.Thread(target=end_with_parent, args=(descriptor, grace), name="lifeline", daemon=True).start()
    return True


def leave_watcher(grace: float = GRACE) -> bool:
    """For a process that is about to become another program, which knows nothing of lifelines (exec).

    A child of this process stays behind in its process group and holds the lifeline: when the parent is gone, it sends
    this process SIGTERM and, after the grace, kills the whole group. It ends with this process.

    Args:
        grace: Seconds between the two.

    Returns:
        Whether there is a lifeline; without the variable nothing is done.

    Raises:
        ProcessError: When the variable does not name an open pipe.
    """
    descriptor = _take_descriptor()
    if descriptor is None:
        return False
    watched = os.getpid()
    if os.fork() == 0:
        watch_over(watched, descriptor, grace)
    return True


def watch_over(watched: int, descriptor: int, grace: float) -> NoReturn:
    """Wait until the pipe ends or the watched process does; the former ends the whole process group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # what stops the group is not for this one
        signal.signal(number, signal.SIG_IGN)
    gone = False
    while not gone and os.getppid() == watched:
        gone = bool(select.select([descriptor], [], [], WATCH_SECONDS)[0])
    if os.getppid() == watched:
        os.kill(watched, signal.SIGTERM)
        time.sleep(grace)
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _take_descriptor() -> int | None:
    """The read end that the environment names; it is not handed on to children, nor is the variable."""
    value = os.environ.pop(LIFELINE_VARIABLE, None)
    if value is None:
        return None
    if not _is_pipe(value):
        raise ProcessError(f"{LIFELINE_VARIABLE}={value} is not an open pipe; unset it, only a parent process sets it")
    os.set_inheritable(int(value), False)
    return int(value)


def _is_pipe(value: str) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(int(value)).st_mode)
    except (ValueError, OverflowError, OSError):
        return False


def end_with_parent(descriptor: int, grace: float) -> None:
    """Block until the pipe ends, then end this process."""
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)
