"""Lets coroutines wait for what the step thread does next."""

from __future__ import annotations

import asyncio


class Progress:
    """A bell: whoever waits when it rings goes on. Used in one event loop."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody who waits."""
        rung, self._next = self._next, asyncio.Event()
        rung.set()

    def listen(self) -> asyncio.Event:
        """Set at the next ring; to be had before looking whether there is anything to wait for."""
        return self._next
