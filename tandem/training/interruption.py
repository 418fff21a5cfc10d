"""Ctrl-C, SIGTERM and a closed terminal while training: the step under way is finished and kept, then the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
def between_steps() -> Iterator[Callable[[], bool]]:
    """Within the block, the first signal only makes the yielded question answer True; a second one interrupts at once.

    Outside the main thread signals cannot be handled, and the answer is always False.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    with handled(ask):
        yield lambda: asked
