"""One process at a time at a place: a run's folder, or a prefix whose preparation several hosts share."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tandem.errors import UsageError
from tandem.training.progress import Progress

LOOK_S = 0.2


def require_unshared(place: Path, hosts: int) -> None:
    """Refuse to throw away what other hosts may have begun to use.

    Raises:
        UsageError: There are several hosts.
    """
    if hosts > 1:
        raise UsageError(
            f"{place}: {hosts} hosts share it, and none of them may throw anything away; remove what shall be made "
            "anew by hand, in place of --fresh or --no-resume"
        )


def at_work(place: Path) -> str | None:
    """Who is at work at a place; None for nobody. Leaves nothing behind."""
    path = _lock_of(place)
    if not path.is_file():
        return None
    with path.open("r", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(lock)
    return None


@contextmanager
def alone_at(place: Path, progress: Progress, *, work: str, wait: bool) -> Iterator[None]:
    """Keep other processes away for as long as the block lasts; the lock goes with the process, however it ends.

    Args:
        place: What is worked at; the lock lies beside it.
        progress: Is told who is waited for.
        work: What is done there, for the message of another process: `prepares data`, `trains`.
        wait: Whether to wait for another process.

    Raises:
        UsageError: Another process is at work there, and `wait` is off.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with _lock_of(place).open("a+", encoding="utf-8") as lock:
        if _is_taken(lock):
            other = f"{_holder(lock)} {work} there"
            if not wait:
                raise UsageError(f"{place}: {other}; wait for it, or work at another place")
            progress.note(f"{place}: {other}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(OSError):  # a full disk: the name is for messages alone
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{os.uname().nodename}, pid {os.getpid()}\n".encode())
        yield


def _is_taken(lock: TextIO) -> bool:
    """Whether somebody else works there; if not, the lock is ours. Who only looks holds it for less than `LOOK_S`."""
    for pause in (LOOK_S, 0.0):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        time.sleep(pause)
    return True


def _lock_of(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


def _holder(lock: TextIO) -> str:
    lock.seek(0)
    return f"another process ({lock.read().strip() or 'unknown'})"
