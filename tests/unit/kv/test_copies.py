"""Copies beside the event loop: all are made, errors come out, and none goes on after its call has ended."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tandem.kv.copies import SLICE, carry_out, copying_threads


@pytest.mark.parametrize("size", [0, SLICE, 100 * SLICE])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_every_copy_is_made_once(size: int, count: int) -> None:
    made: list[int] = []
    asyncio.run(carry_out([lambda place=place: made.append(place) for place in range(count)], size, copying_threads()))
    assert sorted(made) == list(range(count))


@pytest.mark.parametrize("size", [0, 100 * SLICE])
def test_an_error_comes_out_when_all_have_ended(size: int) -> None:
    ended = []

    def fail() -> None:
        raise ValueError("broken")

    def go_on() -> None:
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(carry_out([go_on, fail], size, copying_threads()))
    assert ended == [True]


def test_a_cancelled_call_waits_for_copies_under_way_and_begins_no_more() -> None:
    begun, ended = threading.Semaphore(0), []

    def copy() -> None:
        begun.release()
        time.sleep(0.2)
        ended.append(True)

    async def scenario() -> None:
        copying = asyncio.ensure_future(carry_out([copy] * 100, 100 * SLICE, copying_threads()))
        await asyncio.to_thread(begun.acquire)
        for _ in range(3):  # however often
            copying.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await copying
        count = len(ended)
        await asyncio.sleep(0.5)
        assert 0 < len(ended) == count < 100

    asyncio.run(scenario())
