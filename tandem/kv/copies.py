"""Copies between memories, made beside the event loop by a few threads of their own.

A few saturate the memory; and nothing else that hangs in a thread can hold them up.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

SLICE: Final = 4 * 1024 * 1024
"""Bytes that one copy should have at most: about a millisecond."""

THREADS: Final = min(4, os.cpu_count() or 1)

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kv-copy")


async def carry_out(copies: Iterable[Callable[[], object]], size: int) -> None:
    """Make copies, in any order: here if they are small together, else in threads.

    However this returns, no copy goes on afterwards; a cancelled call waits for those under way.

    Args:
        copies: None of them much over `SLICE`.
        size: Bytes of all.
    """
    left = deque(copies)
    if not left or size <= SLICE // 4:
        _work(left)
        return
    loop = asyncio.get_running_loop()
    workers = [loop.run_in_executor(_threads, _work, left) for _ in range(min(THREADS, len(left)))]
    try:
        await asyncio.wait(workers)
    finally:
        left.clear()
        while not all(worker.done() for worker in workers):
            with suppress(asyncio.CancelledError):  # one is on its way already, or a copy's own error is
                await asyncio.wait(workers)
    for worker in workers:
        worker.result()


def _work(left: deque[Callable[[], object]]) -> None:
    while True:
        try:
            copy = left.popleft()
        except IndexError:
            return
        copy()
