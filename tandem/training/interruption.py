"""Ctrl-C, SIGTERM and a closed terminal while training: the step under way is finished and kept, then the run ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOGETHER_S = 1.0
"""Seconds after a signal in which others are the same wish. A service manager, or a cluster's scheduler, signals every
process of a job at once, so a rank hears it from there and from its launcher."""


class Wish:
    """That it should end, as signals told."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __bool__(self) -> bool:
        """Whether any signal came."""
        return self._since is not None

    def repeated(self) -> bool:
        """Take in a signal; returns whether it is a second wish and not part of the first."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since > TOGETHER_S


@contextmanager
def handled(by: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, `by` handles those of `SIGNALS` that are not ignored, as some are under `nohup` or behind `&`.

    Args:
        by: A handler as Python's `signal` calls it.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, by)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block no signal is heard, nor Ctrl-C ever by processes that it starts; what came is heard after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit
    try:
        with handled(lambda number, frame: came.append(number)):  # other threads may hear it for this one
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number in came:
        signal.raise_signal(number)


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Within the block, the first signal only makes the yielded question answer True; a second one interrupts at once.

    Outside the main thread signals cannot be handled, and the answer is always False.
    """
    wish = Wish()

    def ask(number: int, frame: FrameType | None) -> None:
        if wish.repeated():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    with handled(ask):
        yield lambda: bool(wish)
