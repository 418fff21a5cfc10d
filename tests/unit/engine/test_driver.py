"""The driver: coroutines follow their requests, leaving frees everything, and a failed step ends every request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import torch

from tandem.engine.driver import Driver
from tandem.engine.engine import Engine, EngineIdentity
from tandem.engine.runner import Runner
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import Plan, SchedulerLimits
from tandem.engine.sequence import Request, Status, Update
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import CacheLayout, KVCache
from tandem.model.folder import load
from tandem.protocol.kv import KVTransferParams
from tandem.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
IDENTITY = EngineIdentity(engine_id="e", digest="d", host="127.0.0.1", port=1)
LAYOUT = CacheLayout(layers=3, planes=2, kv_heads=2, head_dim=16, dtype="float32", block_size=16)

Scenario = Callable[[Driver], Coroutine[None, None, None]]


@pytest.fixture
def driver(tiny_model: Path) -> Driver:
    cache, pool = KVCache(LAYOUT, 64, CPU), BlockPool(64, 16)
    tokenizer = Tokenizer.from_folder(tiny_model)
    runner = Runner(load(tiny_model, CPU), cache)
    return Driver(Engine(runner, cache, pool, tokenizer, SchedulerLimits(), IDENTITY, 30.0), transfer_timeout=1.0)


def run(driver: Driver, scenario: Scenario) -> None:
    async def around() -> None:
        driver.start()
        try:
            await asyncio.wait_for(scenario(driver), 60)
        finally:
            await driver.stop()

    asyncio.run(around())


def ask(count: int = 10, **fields: object) -> Request:
    return Request(id="r", prompt=[9, 8, 7], sampling=SamplingParams(max_tokens=count), **fields)  # type: ignore[arg-type]


async def answer(driver: Driver, request: Request) -> list[Update]:
    return [update async for update in driver.generate(request)]


async def until_free(driver: Driver) -> None:
    # The step thread frees them, and tells nobody.
    while driver.engine.pool.free != driver.engine.pool.count or driver.engine.scheduler.running:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_many_at_once_each_get_their_own(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        answers = await asyncio.gather(*(answer(driver, ask(count)) for count in range(1, 12)))
        assert [sum(u.tokens for u in updates) for updates in answers] == list(range(1, 12))
        assert {updates[-1].reason for updates in answers} == {"length"}
        texts = ["".join(u.text for u in updates) for updates in answers]
        assert texts[-1].startswith(texts[4]), "greedy answers to one prompt begin alike"

    run(driver, scenario)


def test_leaving_early_frees_the_blocks(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        updates = driver.generate(ask(400))
        await anext(updates)
        await updates.aclose()
        await until_free(driver)
        assert driver.engine.stats.ended == {Status.ABORTED: 1}

    run(driver, scenario)


def test_cancelling_while_waiting_frees_the_blocks(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        task = asyncio.create_task(answer(driver, ask(900)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})
        await until_free(driver)
        assert driver.engine.stats.ended == {Status.ABORTED: 1}

    run(driver, scenario)


def test_a_fetch_that_fails_says_why_and_frees_the_blocks(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        ticket = KVTransferParams(
            do_remote_prefill=True, remote_engine_id="x", remote_request_id="y", remote_host="127.0.0.1", remote_port=1
        )
        (update,) = await answer(driver, ask(fetch_from=ticket))
        assert update.reason == "error"
        assert "127.0.0.1:1 broke off" in (update.error or "")
        await until_free(driver)
        assert driver.engine.stats.kv_transfers_failed == 1

    run(driver, scenario)


def test_a_failed_step_ends_every_request(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    def fail(plan: Plan) -> list[int]:
        raise MemoryError("no memory left")

    async def scenario(driver: Driver) -> None:
        driver.engine.run = fail  # type: ignore[method-assign]
        with caplog.at_level(logging.CRITICAL):
            answers = await asyncio.gather(*(answer(driver, ask()) for _ in range(3)))
        assert all("the instance failed: no memory left" in (updates[-1].error or "") for updates in answers)
        assert driver.failure is not None
        assert isinstance(await driver.failure, MemoryError)
        assert not driver.alive
        (late,) = await answer(driver, ask())
        assert late.reason == "error"

    run(driver, scenario)


def test_stopping_ends_every_request(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        task = asyncio.create_task(answer(driver, ask(900)))
        await asyncio.sleep(0.05)
        await driver.stop()
        updates = await task
        assert updates[-1].error == "the instance is stopping"

    run(driver, scenario)
