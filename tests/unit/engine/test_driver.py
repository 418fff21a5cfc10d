"""The driver: coroutines follow their requests, leaving frees everything, and a failed step ends every request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine

import pytest
import torch
import uvloop
from reference.ledger import LedgerModel, greedy
from torch import Tensor

from tandem.engine.driver import Driver
from tandem.engine.engine import Engine, EngineOptions
from tandem.engine.fetcher import Fetcher
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.sequence import Status
from tandem.engine.step import Step
from tandem.engine.tickets import EngineIdentity
from tandem.engine.update import Update
from tandem.errors import ProcessError, RequestError, TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.messages import Keep, Pull, Release, decode
from tandem.kv.prefix import BlockKeys
from tandem.kv.puller import Puller
from tandem.kv.shards import Shards
from tandem.protocol.kv import KVTransferParams

BLOCKS, SIZE = 40, 4
LAYOUT = CacheLayout(layers=1, planes=1, kv_heads=1, head_dim=1, dtype="float32", block_size=SIZE)
PROMPT = [9, 8, 7]
LONG = list(range(11)) * 2
TICKET = KVTransferParams(
    do_remote_prefill=True, remote_engine_id="x", remote_request_id="y", remote_host="127.0.0.1", remote_port=1
)

Scenario = Callable[[Driver], Coroutine[None, None, None]]


class Letters:
    """A tokenizer of one letter per token."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token])


class Slow(LedgerModel):
    """Takes its time, fails when told to, and dies when told to."""

    failure: Exception | None = None
    closed = False

    def logits(self, step: Step) -> Tensor | None:
        time.sleep(0.002)
        if self.failure is not None:
            raise self.failure
        return super().logits(step)

    def watch(self, on_death: Callable[[ProcessError], object]) -> None:
        self.die = on_death

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def model() -> Slow:
    return Slow(SIZE)


@pytest.fixture
def driver(model: Slow) -> Driver:
    options = EngineOptions(
        limits=SchedulerLimits(max_num_seqs=16, max_num_batched_tokens=16),
        root=lambda request: b"root",
        lease_seconds=1.0,
    )
    identity = EngineIdentity(engine_id="e", digest="d", host="127.0.0.1", port=1)
    engine = Engine(Runner(model), BlockPool(BLOCKS, SIZE), Letters(), options, identity)
    shards = Shards(LAYOUT, [KVCache(LAYOUT, BLOCKS, torch.device("cpu"))])
    return Driver(engine, shards, Fetcher(Puller(shards, ("tcp",), 30.0)))


def run(driver: Driver, scenario: Scenario) -> None:
    async def around() -> None:
        driver.start()
        try:
            await asyncio.wait_for(scenario(driver), 20)
        finally:
            await driver.stop()

    uvloop.run(around())


def ask(count: int = 10, name: str = "r", prompt: list[int] = PROMPT, **fields) -> Request:
    return Request(id=name, prompt=prompt, sampling=SamplingParams(max_tokens=count), **fields)


async def answer(driver: Driver, request: Request) -> list[Update]:
    return [update async for update in driver.generate(request)]


async def until(fact: Callable[[], bool]) -> None:
    """The step thread tells nobody of it."""
    while not fact():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def idle(driver: Driver) -> bool:
    scheduler = driver.engine.scheduler
    audit = driver.audit()
    return audit.free == audit.blocks and not scheduler.running and not scheduler.waiting


def pull_of(ticket: KVTransferParams, prompt: list[int]) -> Pull:
    content = BlockKeys(b"root", SIZE).content(prompt, len(prompt))
    return Pull(ticket=ticket.remote_request_id or "", engine_id="e", digest="d", content=content)


def test_many_at_once_each_get_their_own(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        answers = await asyncio.gather(*(answer(driver, ask(count, f"r{count}")) for count in range(1, 12)))
        for count, updates in enumerate(answers, start=1):
            assert [token for update in updates for token in update.tokens] == greedy(PROMPT, count)
            assert [update.reason for update in updates] == [None] * (count - 1) + ["length"]
        assert idle(driver)

    run(driver, scenario)


def test_an_answer_ends_with_the_last_of_its_choices(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        updates = await answer(driver, ask(4, choices=(0, 1, 2)))
        assert sorted(update.choice for update in updates) == sorted([0, 1, 2] * 4)
        assert sum(update.reason == "length" for update in updates) == 3

    run(driver, scenario)


def test_leaving_early_frees_the_blocks(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        updates = driver.generate(ask(150))
        await anext(updates)
        await updates.aclose()
        await until(lambda: idle(driver))
        assert driver.engine.stats.ended == {Status.ABORTED: 1}

    run(driver, scenario)


def test_cancelling_while_waiting_frees_the_blocks(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        task = asyncio.create_task(answer(driver, ask(150)))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})
        await until(lambda: idle(driver))
        assert driver.engine.stats.ended == {Status.ABORTED: 1}

    run(driver, scenario)


def test_a_request_that_never_fits_leaves_nothing_behind(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        with pytest.raises(RequestError, match="KV blocks"):
            await answer(driver, ask(1000))
        assert idle(driver)
        assert len(await answer(driver, ask(3))) == 3

    run(driver, scenario)


def test_a_deadline_ends_a_request_though_nothing_else_happens(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        name, _ = driver.reserve(BLOCKS * SIZE) or ("", 0)
        updates = await answer(driver, ask(deadline=time.monotonic() + 0.2))
        assert [update.status for update in updates] == [504]
        driver.release(name)
        assert idle(driver)

    run(driver, scenario)


def test_a_reservation_ends_by_itself_though_nothing_else_happens(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        assert (driver.reserve(8) or ("", 0))[1] == 1.0
        assert driver.reserve(BLOCKS * SIZE) is None
        await until(lambda: idle(driver))
        assert driver.engine.reservations.expired == 1

    run(driver, scenario)


def test_released_blocks_let_a_waiting_request_go_on_at_once(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        name, _ = driver.reserve(BLOCKS * SIZE) or ("", 0)
        task = asyncio.create_task(answer(driver, ask(3)))
        await asyncio.sleep(0.05)
        assert not task.done()
        assert driver.release(name)
        assert not driver.release(name)
        assert len(await task) == 3

    run(driver, scenario)


def test_a_fetch_that_fails_says_why_and_frees_the_blocks(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        (update,) = await answer(driver, ask(fetch_from=TICKET))
        assert (update.reason, update.status) == ("error", 502)
        assert "127.0.0.1:1" in (update.error or "")
        await until(lambda: idle(driver))
        assert driver.engine.stats.kv_transfers_failed == 1

    run(driver, scenario)


def test_leaving_during_a_fetch_frees_the_blocks(driver: Driver) -> None:
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async def scenario(driver: Driver) -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        ticket = KVTransferParams(
            do_remote_prefill=True, remote_engine_id="x", remote_host="127.0.0.1", remote_port=port
        )
        task = asyncio.create_task(answer(driver, ask(fetch_from=ticket)))
        await connected.wait()
        assert driver.audit().pulls == 1
        task.cancel()
        await asyncio.wait({task})
        await until(lambda: idle(driver))
        assert driver.audit().pulls == 0
        server.close()
        await server.wait_closed()

    run(driver, scenario)


def test_the_ticket_of_a_request_that_never_fits_is_given_back(driver: Driver) -> None:
    heard: list[bytes] = []

    async def holder(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    async def scenario(driver: Driver) -> None:
        server = await asyncio.start_server(holder, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        ticket = KVTransferParams(
            do_remote_prefill=True,
            remote_engine_id="x",
            remote_request_id="y",
            remote_host="127.0.0.1",
            remote_port=port,
        )
        with pytest.raises(RequestError, match="KV blocks"):
            await answer(driver, ask(1000, fetch_from=ticket))
        await until(lambda: bool(heard))
        assert decode(heard[0][4:], Release) == Release("x", "y")
        server.close()
        await server.wait_closed()

    run(driver, scenario)


def test_a_failed_step_ends_every_request(driver: Driver, model: Slow, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(driver: Driver) -> None:
        model.failure = MemoryError("no memory left")
        with caplog.at_level(logging.CRITICAL):
            answers = await asyncio.gather(*(answer(driver, ask(name=name)) for name in "abc"))
        assert all("the instance failed: no memory left" in (updates[-1].error or "") for updates in answers)
        assert driver.failure is not None
        assert await driver.failure is model.failure
        assert not driver.alive
        (late,) = await answer(driver, ask())
        assert late.reason == "error"

    run(driver, scenario)


def test_the_death_of_a_part_of_the_model_ends_every_request(driver: Driver, model: Slow) -> None:
    async def scenario(driver: Driver) -> None:
        tasks = [asyncio.create_task(answer(driver, ask(150, name))) for name in "ab"]
        await asyncio.sleep(0.05)
        assert driver.alive
        await asyncio.to_thread(model.die, ProcessError("rank 1 died"))
        answers = await asyncio.gather(*tasks)
        assert all(updates[-1].error == "the instance failed: rank 1 died" for updates in answers)
        assert not driver.alive

    run(driver, scenario)


def test_stopping_ends_every_request_and_lets_go_of_the_model(driver: Driver, model: Slow) -> None:
    async def scenario(driver: Driver) -> None:
        task = asyncio.create_task(answer(driver, ask(150)))
        await asyncio.sleep(0.05)
        await driver.stop()
        assert (await task)[-1].error == "the instance is stopping; ask another one"
        assert model.closed

    run(driver, scenario)


def test_a_ticket_is_heard_of_and_its_blocks_are_named_while_the_prefill_goes_on(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        updates = driver.generate(ask(prompt=LONG, keep_for_remote=True))
        first = await anext(updates)
        assert (first.tokens, first.reason) == ((), None)
        assert first.ticket is not None
        outgoing = driver.holder.open(pull_of(first.ticket, LONG))
        assert outgoing.count == 6
        parts = []
        while part := await outgoing.next():
            parts.append(len(part))
        assert sum(parts) == 6
        assert outgoing.state
        assert outgoing.confirm()
        outgoing.close()
        outgoing.close()
        assert [update.reason async for update in updates] == ["length"]
        await until(lambda: idle(driver))
        assert driver.engine.stats.kv_transfers_sent == 1
        assert driver.engine.stats.kv_transfers_failed == 0

    run(driver, scenario)


def test_a_ticket_that_nobody_has_heard_of_is_let_go(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        updates = driver.generate(ask(prompt=LONG, keep_for_remote=True))
        await anext(updates)
        await until(lambda: driver.engine.stats.ended == {Status.FINISHED: 1})
        await asyncio.sleep(0)
        assert len(driver.engine.tickets) == 1
        await updates.aclose()
        await until(lambda: idle(driver))
        assert (len(driver.engine.tickets), driver.engine.tickets.expired) == (0, 0)

    run(driver, scenario)


def test_a_pull_that_waits_learns_that_the_prefill_was_aborted(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        updates = driver.generate(ask(prompt=LONG * 6, keep_for_remote=True))
        ticket = (await anext(updates)).ticket
        assert ticket is not None
        outgoing = driver.holder.open(pull_of(ticket, LONG * 6))

        async def all_of_it() -> None:
            while await outgoing.next():
                pass

        task = asyncio.create_task(all_of_it())
        await asyncio.sleep(0)
        await updates.aclose()
        with pytest.raises(TransferError, match="aborted"):
            await task
        outgoing.close()
        await until(lambda: idle(driver))

    run(driver, scenario)


def test_a_holder_keeps_and_releases_for_its_own_process_only(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        holder = driver.holder
        ticket = (await answer(driver, ask(keep_for_remote=True)))[-1].ticket
        assert ticket is not None
        name = ticket.remote_request_id or ""
        assert holder.engine_id == "e"
        holder.release(Release("earlier", name))
        for _ in range(8):
            holder.keep(Keep("e", [name, "unknown"]))
            await asyncio.sleep(0.2)
        assert len(driver.engine.tickets) == 1
        holder.release(Release("e", name))
        assert len(driver.engine.tickets) == 0
        assert driver.engine.tickets.expired == 0

    run(driver, scenario)


def test_a_prefill_whose_ticket_is_released_ends_for_whoever_asked_for_it(driver: Driver) -> None:
    async def scenario(driver: Driver) -> None:
        updates = driver.generate(ask(prompt=LONG * 6, keep_for_remote=True))
        ticket = (await anext(updates)).ticket
        assert ticket is not None
        driver.holder.release(Release("e", ticket.remote_request_id or ""))
        assert [update.reason async for update in updates] == ["error"]
        await until(lambda: idle(driver))

    run(driver, scenario)
