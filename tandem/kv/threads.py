"""Threads beside the event loop, for what would hold it up: each owner has its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress


class Threads:
    """Some threads, made as they are needed.

    Args:
        most: So many at once; further work waits for its turn.
        name: What they are called.
    """

    def __init__(self, most: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, *works: Callable[[], object], interrupt: Callable[[], object]) -> None:
        """Do each work in a thread, and wait for the end of all, even if cancelled.

        Args:
            works: At least one. An error is raised when all have ended; of several the first one's.
            interrupt: Makes them end soon; called when this is cancelled, perhaps several times.
        """
        loop = asyncio.get_running_loop()
        working = [loop.run_in_executor(self._pool, work) for work in works]
        try:
            await asyncio.wait(working)
        finally:
            while not all(one.done() for one in working):
                interrupt()
                with suppress(asyncio.CancelledError):  # one is on its way already
                    await asyncio.wait(working)
            # Every one is asked, after a cancellation too: asyncio complains of errors that nobody asks for.
            errors = [error for one in working if (error := one.exception())]
        for error in errors:
            raise error

    def close(self) -> None:
        """Let the threads end; nothing may be done in them any more."""
        self._pool.shutdown(wait=False)
