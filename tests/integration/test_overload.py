"""More requests than fit: real instances with few KV blocks behind a gateway that lets in what has room."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from chaos.fleet import Shape
from chaos.standing import Standing, standing
from gateway_rig import until

from tandem.gateway.admission import capacity_watch
from tandem.gateway.admission.queue_limits import QueueLimits
from tandem.gateway.admission.reservation import Reservations
from tandem.gateway.config import GatewayConfig
from tandem.gateway.server import Gateway
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.capacity import FULL

BLOCKS, BLOCK_TOKENS = 64, 8
PROMPT, ANSWER = 40, 60
AT_ONCE = int(FULL * BLOCKS * BLOCK_TOKENS / (PROMPT + ANSWER))
"""Requests that have room beside each other."""
BURST = 30
NUMBERS = count(10)


@pytest.fixture(scope="module")
def there(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    shape = Shape(prefill=1, decode=1, transports=("auto",), policies=("fail",), options={"max-num-batched-tokens": 64})
    with standing(shape, tiny_model, tmp_path_factory.mktemp("overload")) as made:
        yield made


@dataclass
class Burst:
    """Streams at a time, and what became of them."""

    there: Standing
    gateway: Gateway
    statuses: list[int] = field(default_factory=list)
    retry_after: set[int] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)
    """In the order of their first tokens."""
    waited_there: int = 0
    """Most requests that the decode instance itself kept waiting."""

    async def ask(self, name: str, **fields: Any) -> None:
        """A prompt that nobody has asked before, so that all of it is computed."""
        number = next(NUMBERS)
        prompt = [number % 500, number // 500, *range(100, 100 + PROMPT - 2)]
        body = {"prompt": prompt, "max_tokens": ANSWER, "ignore_eos": True, "stream": True} | fields
        async with self.there.fleet.http.post(self.gateway.url + "/v1/completions", json=body) as response:
            self.statuses.append(response.status)
            if response.status != 200:
                self.retry_after.add(int(response.headers.get("Retry-After", 0)))
                return
            async for _ in response.content.iter_any():
                if name not in self.begun:
                    self.begun.append(name)

    async def watched(self, *asking: asyncio.Task[None]) -> None:
        """Wait for them all, and watch the decode instance meanwhile."""
        rest = set(asking)
        while rest:
            _, rest = await asyncio.wait(rest, timeout=0.02)
            metrics = await self.there.decode.metrics(self.there.fleet.http)
            self.waited_there = max(self.waited_there, int(metrics["requests_waiting"]))
        for one in asking:
            one.result()

    async def waits(self, requests: int) -> bool:
        return await self.metric("queue_length") == requests

    async def metric(self, name: str) -> float:
        async with self.there.fleet.http.get(self.gateway.url + "/metrics") as response:
            found = re.search(rf"^tandem_gateway_{name} (\S+)$", await response.text(), re.MULTILINE)
        return 0.0 if found is None else float(found[1])


@asynccontextmanager
async def in_front(there: Standing, **limits: Any) -> AsyncIterator[Burst]:
    gateway = Gateway(
        GatewayConfig(
            prefill=(there.prefill.url,),
            decode=(there.decode.url,),
            port=0,
            grace_s=0.1,
            queue=QueueLimits(**limits),
        )
    )
    await gateway.start()
    try:
        yield Burst(there, gateway)
        assert await there.fleet.quiet(5) is not None, await there.fleet.audits()
    finally:
        await gateway.stop()


async def computed(there: Standing) -> float:
    """Prompt tokens that went through the prefill instance."""
    return (await there.prefill.metrics(there.fleet.http))["prompt_tokens_computed_total"]


@pytest.mark.parametrize("knows", [True, False])
def test_a_burst_waits_at_the_gateway_and_not_at_the_instance(
    there: Standing, knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that does not know how much room there is shows what the ledger is for."""
    if not knows:
        monkeypatch.setattr(capacity_watch.Occupancy, "read", lambda _: None)

    async def scenario() -> None:
        async with in_front(there) as burst:
            await burst.watched(*(asyncio.create_task(burst.ask(str(i))) for i in range(BURST)))
            assert burst.statuses == [200] * BURST
            if knows:
                assert burst.waited_there <= AT_ONCE
                assert await burst.metric("queue_seconds_count") >= BURST - 3 * AT_ONCE
            else:
                assert burst.waited_there > 2 * AT_ONCE

    there.do(asyncio.wait_for(scenario(), 60))


@pytest.mark.full
def test_who_comes_first_is_let_in_first(there: Standing) -> None:
    async def scenario() -> None:
        async with in_front(there) as burst:
            asking = []
            for number in range(12):
                asking.append(asyncio.create_task(burst.ask(f"patient {number:02}", priority=3)))
                await asyncio.sleep(0.005)
            for number in range(6):
                asking.append(asyncio.create_task(burst.ask(f"urgent {number}")))
                await asyncio.sleep(0.005)
            await burst.watched(*asking)
            waited = burst.begun[AT_ONCE:]
            late = [at for at, name in enumerate(waited) if name.startswith("urgent")]
            assert max(late) < len(late) + AT_ONCE, burst.begun
            patient = [name for name in burst.begun if name.startswith("patient")]
            places = {name: at for at, name in enumerate(sorted(patient))}
            assert all(abs(places[name] - at) <= AT_ONCE for at, name in enumerate(patient)), burst.begun

    there.do(asyncio.wait_for(scenario(), 60))


def test_past_the_queue_clients_are_told_to_come_again_and_nothing_is_computed_for_them(there: Standing) -> None:
    async def scenario() -> None:
        async with in_front(there, queue=5) as burst:
            before = await computed(there)
            await burst.watched(*(asyncio.create_task(burst.ask(str(i))) for i in range(BURST)))
            assert burst.statuses.count(200) + burst.statuses.count(429) == BURST
            assert AT_ONCE + 5 <= burst.statuses.count(200) < BURST / 2
            assert burst.retry_after <= set(range(1, 61))
            assert await computed(there) == before + PROMPT * burst.statuses.count(200)

    there.do(asyncio.wait_for(scenario(), 60))


@pytest.mark.full
def test_clients_that_leave_the_queue_leave_nothing(there: Standing) -> None:
    async def scenario() -> None:
        async with in_front(there) as burst:
            before = await computed(there)
            asking = [asyncio.create_task(burst.ask(str(i))) for i in range(BURST)]
            await until(partial(burst.waits, BURST - AT_ONCE))
            for one in asking[AT_ONCE + 2 :]:
                one.cancel()
            await burst.watched(*asking[: AT_ONCE + 2])
            assert burst.statuses == [200] * (AT_ONCE + 2)
            assert await burst.metric("queue_length") == 0
            assert await computed(there) == before + PROMPT * (AT_ONCE + 2)

    there.do(asyncio.wait_for(scenario(), 60))


def test_an_instance_that_is_nearly_full_keeps_room_before_the_prefill(
    there: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last that fits is asked for; what another one takes there meanwhile is known before anything is computed."""

    async def scenario() -> None:
        names = []

        async def keep(self: Reservations, worker: Worker, tokens: int) -> str | None:
            names.append(await asked(self, worker, tokens))
            return names[-1]

        asked = Reservations.keep
        monkeypatch.setattr(Reservations, "keep", keep)
        async with in_front(there) as burst:
            await burst.watched(*(asyncio.create_task(burst.ask(str(i))) for i in range(2 * AT_ONCE)))
            assert names
            assert None not in names
            whole = BLOCKS * BLOCK_TOKENS // 2
            status, kept = await there.ask(there.decode, {"tokens": whole - 16}, "/tandem/reserve")
            assert status == 200
            before = await computed(there)
            await burst.watched(*(asyncio.create_task(burst.ask(str(i))) for i in range(2 * AT_ONCE)))
            assert burst.waited_there <= AT_ONCE
            assert await computed(there) == before + PROMPT * 2 * AT_ONCE
            await there.ask(there.decode, {"reservation": kept["reservation"]}, "/tandem/release")

    there.do(asyncio.wait_for(scenario(), 60))


@pytest.mark.full
def test_many_answers_to_one_request_come_one_after_the_other(there: Standing) -> None:
    async def scenario() -> None:
        async with in_front(there, queue=3) as burst:
            await burst.watched(asyncio.create_task(burst.ask("several", n=16)))
            assert burst.statuses == [200]
            assert burst.waited_there <= AT_ONCE

    there.do(asyncio.wait_for(scenario(), 60))


def test_a_deadline_is_over_in_the_queue(there: Standing) -> None:
    async def scenario() -> None:
        async with in_front(there) as burst:
            asking = [asyncio.create_task(burst.ask(str(i))) for i in range(12)]
            await asyncio.sleep(0.05)
            before = await computed(there)
            late = asyncio.create_task(burst.ask("late", deadline_seconds=0.1))
            await late
            assert burst.statuses[-1] == 504
            await burst.watched(*asking)
            assert await computed(there) - before <= PROMPT * 12

    there.do(asyncio.wait_for(scenario(), 60))
