"""Copies between memories, made beside the event loop by a few threads of their own.

A few saturate the memory; and nothing else that hangs in a thread can hold them up.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from tandem.kv.threads import Threads

SLICE: Final = 4 * 1024 * 1024
"""Bytes that one copy should have at most: about a millisecond."""

THREADS: Final = min(4, os.cpu_count() or 1)


def copying_threads() -> Threads:
    """Threads for `carry_out`."""
    return Threads(THREADS, "kv-copy")


async def carry_out(copies: Iterable[Callable[[], object]], size: int, threads: Threads) -> None:
    """Make copies, in any order: here if they are small together, else in threads.

    However this returns, no copy goes on afterwards; a cancelled call waits for those under way.

    Args:
        copies: None of them much over `SLICE`.
        size: Bytes of all.
        threads: Made for it.
    """
    left = deque(copies)
    if not left or size <= SLICE // 4:
        _work(left)
        return
    await threads.run(*[partial(_work, left)] * min(THREADS, len(left)), interrupt=left.clear)


def _work(left: deque[Callable[[], object]]) -> None:
    while True:
        try:
            copy = left.popleft()
        except IndexError:
            return
        copy()
