"""Work beside the event loop: its end is waited for, and its errors are heard of or were asked for."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from tandem.kv.threads import Threads


def test_all_is_done_and_an_error_comes_out_at_the_end() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("broken")

    async def scenario() -> None:
        threads = Threads(2, "test")
        with pytest.raises(OSError, match="broken"):
            await threads.run(fail, *[lambda: done.append(1)] * 5, interrupt=done.clear)
        threads.close()
        assert done == [1] * 5

    asyncio.run(scenario())


def test_an_error_after_a_cancellation_is_not_complained_of() -> None:
    complaints: list[Any] = []
    begun, interrupted = threading.Event(), threading.Event()

    def fail() -> None:
        begun.set()
        interrupted.wait(5)
        raise OSError("the connection was cut")

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        running = asyncio.ensure_future(Threads(1, "test").run(fail, interrupt=interrupted.set))
        await asyncio.to_thread(begun.wait)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        del running
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert complaints == []
