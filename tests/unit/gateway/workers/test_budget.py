"""How many may try again at a time, and that room is neither lost nor invented."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

from tandem.gateway.processes.board import Board, shared_memory
from tandem.gateway.workers.budget import AT_LEAST, Retry, RetryBudget

Scenario = Callable[[RetryBudget], Awaitable[None]]


def trial(scenario: Scenario) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(scenario(RetryBudget()), 5))  # type: ignore[arg-type]

    run.__name__ = scenario.__name__
    run.__doc__ = scenario.__doc__
    return run


async def full(budget: RetryBudget) -> list[Retry]:
    return [await budget.retry() for _ in range(AT_LEAST)]


async def begun(budget: RetryBudget, count: int) -> list[asyncio.Task[Retry]]:
    """So many who wait, in order."""
    tasks = [asyncio.create_task(budget.retry()) for _ in range(count)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@trial
async def test_so_many_and_then_first_come_first_served(budget: RetryBudget) -> None:
    held = await full(budget)
    tasks = await begun(budget, 3)
    for count, retry in enumerate(held[:3], start=1):
        retry.end()
        await settle()
        assert [task.done() for task in tasks] == [place < count for place in range(3)]


@trial
async def test_nobody_overtakes(budget: RetryBudget) -> None:
    held = await full(budget)
    [waiting] = await begun(budget, 1)
    budget.in_flight.add(1000)
    [late] = await begun(budget, 1)
    held[0].end()
    await settle()
    assert waiting.done()
    assert late.done()


@trial
async def test_with_many_in_flight_there_is_more_room(budget: RetryBudget) -> None:
    budget.in_flight.add(50)
    for _ in range(10):
        await budget.retry()
    await begun(budget, 1)


@trial
async def test_room_is_given_back_once(budget: RetryBudget) -> None:
    first, *_ = await full(budget)
    first.end()
    first.end()
    await budget.retry()
    await begun(budget, 1)


@trial
async def test_a_try_that_takes_long_is_load_like_any_other(budget: RetryBudget) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tandem.gateway.workers.budget.LONGEST_S", 0.01)
        held = await full(budget)
    await asyncio.gather(*await begun(budget, AT_LEAST))
    for retry in held:
        retry.end()
    await begun(budget, 1)


async def still_has_room_for(budget: RetryBudget, count: int) -> None:
    for _ in range(count):
        await asyncio.wait_for(budget.retry(), 1)
    await begun(budget, 1)


@trial
async def test_who_leaves_while_waiting_takes_no_room(budget: RetryBudget) -> None:
    held = await full(budget)
    first, second = await begun(budget, 2)
    first.cancel()
    await settle()
    held[0].end()
    await settle()
    assert second.done()


@trial
async def test_who_leaves_when_room_was_just_given_gives_it_on(budget: RetryBudget) -> None:
    held = await full(budget)
    first, second = await begun(budget, 2)
    held[0].end()  # the first one has its turn, and has not run yet
    first.cancel()
    await settle()
    assert first.cancelled()
    assert second.done()


@trial
async def test_who_left_just_before_room_was_given_is_passed_over(budget: RetryBudget) -> None:
    held = await full(budget)
    first, second = await begun(budget, 2)
    first.cancel()  # and has not run yet
    held[0].end()
    await settle()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert second.done()
    for retry in held[1:]:
        retry.end()
    (await second).end()
    await still_has_room_for(budget, AT_LEAST)


def test_processes_share_it() -> None:
    async def scenario() -> None:
        memory = shared_memory(2)
        here, there = (RetryBudget(Board(2, row, memory)) for row in range(2))
        held = await full(there)
        [waiting] = await begun(here, 1)
        assert (here.retrying, there.retrying, here.waiting) == (0, AT_LEAST, 1)
        held[0].end()
        await waiting
        there.in_flight.add(50)
        for _ in range(50 // 5 - AT_LEAST):
            await here.retry()
        await begun(here, 1)
        os.close(memory)

    asyncio.run(asyncio.wait_for(scenario(), 5))
