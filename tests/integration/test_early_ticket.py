"""Real processes: decode pulls blocks while the prefill goes on, and a client that goes leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from test_apart import Service, greedy

from tandem.deploy.port import free_ports
from tandem.deploy.service import local_topology, running
from tandem.topology.topology import Instance, Role

STEP = 4
"""Tokens that the prefill instance computes at a time."""
LENGTH = 460
KV_BYTES = LENGTH * 3 * 2 * 2 * 16 * 4
"""Of the prompt in the tiny model: layers, planes, kv heads, head dimension, fp32."""
TAP = "127.0.0.2"
"""Where the prefill instance's KV port seems to be."""
SOON_S = 1.0
"""From the moment a client closes its connection, or is told that its time is over, to the last block's release."""


class Wiretap:
    """Stands before the prefill instance's KV port and counts what passes to the decode instance."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.passed = 0
        self._carrying: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._accept, TAP, self.port):
            yield
            await asyncio.gather(*self._carrying)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        await task

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with hung_up(writer):
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.port)
            async with hung_up(inner_writer), asyncio.TaskGroup() as ways:
                asking = ways.create_task(self._copy(reader, inner_writer, counts=False))
                answering = ways.create_task(self._copy(inner_reader, writer, counts=True))
                await asyncio.wait([asking, answering], return_when=asyncio.FIRST_COMPLETED)
                asking.cancel()
                answering.cancel()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(2**16):
                writer.write(piece)
                await writer.drain()
                self.passed += counts * len(piece)


@asynccontextmanager
async def hung_up(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Closed at the end of the block, however it ends."""
    try:
        yield
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture(scope="module")
def kv_port() -> int:
    return free_ports("127.0.0.1", 1)[0]


@pytest.fixture(scope="module")
def apart(tiny_model: Path, kv_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    batch = {"max-num-seqs": "4", "max-num-batched-tokens": str(STEP)}
    arguments = {
        Role.PREFILL: batch | {"kv-port": str(kv_port), "kv-host": TAP},
        Role.DECODE: {"kv-transport": "tcp"},
        Role.GATEWAY: {},
    }

    def with_arguments(one: Instance) -> Instance:
        return one.model_copy(update={"arguments": arguments[one.role]})

    topology = local_topology(tiny_model, prefill=1, decode=1, port=0)
    topology = topology.model_copy(update={"instances": tuple(map(with_arguments, topology.instances))})
    with running(topology, tmp_path_factory.mktemp("early"), timeout=120):
        yield Service(topology)


def prompt(number: int) -> list[int]:
    """One that no other one begins like, so that no block of it is known."""
    return random.Random(number).choices(range(7, 500), k=LENGTH)


def alone(service: Service, body: dict[str, Any]) -> Any:
    """The choices of the decode instance when it computes all of it; it finds no block that it pulled by this salt."""
    return service.post(Role.DECODE, "/v1/completions", body | {"cache_salt": "alone"})[1]["choices"]


def test_blocks_arrive_while_the_prefill_goes_on(apart: Service, kv_port: int) -> None:
    body = greedy(prompt(0), 16)
    computed_before, theirs_before = (
        apart.metric(role, "prompt_tokens_computed_total") for role in (Role.PREFILL, Role.DECODE)
    )
    tap = Wiretap(kv_port)

    async def watched() -> tuple[dict[str, Any], list[float]]:
        """The answer, and how many tokens had been computed each time that a quarter of all blocks had passed."""
        seen = []
        async with tap.listening(), aiohttp.ClientSession() as session:
            asked = asyncio.create_task(answer(session))
            while not asked.done():
                if tap.passed > KV_BYTES // 4:
                    seen.append(await asyncio.to_thread(apart.metric, Role.PREFILL, "prompt_tokens_computed_total"))
                await asyncio.sleep(0.001)
            return await asked, seen

    async def answer(session: aiohttp.ClientSession) -> dict[str, Any]:
        async with session.post(apart.url(Role.GATEWAY) + "/v1/completions", json=body) as response:
            return await response.json()

    got, seen = uvloop.run(watched())
    assert tap.passed > KV_BYTES
    assert seen[0] - computed_before < LENGTH
    assert apart.metric(Role.DECODE, "prompt_tokens_computed_total") == theirs_before
    assert got["choices"] == alone(apart, body)
    assert apart.metric(Role.DECODE, "prompt_tokens_computed_total") == theirs_before + LENGTH


def test_choices_are_the_same_apart(apart: Service, kv_port: int) -> None:
    body = {"prompt": prompt(1), "max_tokens": 12, "n": 3, "seed": 4, "temperature": 1.0}

    async def ask() -> dict[str, Any]:
        async with Wiretap(kv_port).listening():
            return (await asyncio.to_thread(apart.post, Role.GATEWAY, "/v1/completions", body))[1]

    assert uvloop.run(ask())["choices"] == alone(apart, body)


def test_a_deadline_ends_the_request_everywhere(apart: Service, kv_port: int) -> None:
    body = greedy(prompt(2), 40) | {"deadline_seconds": 0.05}

    async def ask() -> tuple[int, dict[str, Any]]:
        async with Wiretap(kv_port).listening():
            return await asyncio.to_thread(apart.post, Role.GATEWAY, "/v1/completions", body)

    status, answer = uvloop.run(ask())
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    uvloop.run(nothing_left(apart))


@pytest.mark.full
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_client_that_goes_at_any_moment_leaves_nothing(apart: Service, kv_port: int, stream: bool) -> None:
    """Through the whole life of a request: the moments lie denser where less time has passed."""
    moments = [0.0005 * 1.25**number for number in range(36)]
    bodies = [greedy(prompt(10 + number), 40) | {"stream": stream} for number in range(len(moments))]

    async def ask_and_go(session: aiohttp.ClientSession, body: dict[str, Any], moment: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(moment):
                async with session.post(apart.url(Role.GATEWAY) + "/v1/completions", json=body) as response:
                    await response.read()

    async def come_and_go() -> None:
        async with Wiretap(kv_port).listening(), aiohttp.ClientSession() as session:
            for body, moment in zip(bodies, moments, strict=True):
                await ask_and_go(session, body, moment)
                await nothing_left(apart)

    uvloop.run(come_and_go())
    assert apart.metric(Role.PREFILL, "kv_leases_expired_total") == 0


async def nothing_left(service: Service) -> None:
    """Wait until no instance holds anything of a request."""
    async with asyncio.timeout(SOON_S), aiohttp.ClientSession() as session:
        for role in (Role.PREFILL, Role.DECODE):
            while not await clean(session, service.url(role)):  # noqa: ASYNC110 - another process is waited for
                await asyncio.sleep(0.01)


async def clean(session: aiohttp.ClientSession, url: str) -> bool:
    async with session.get(f"{url}/tandem/audit") as response:
        audit = await response.json()
    held = sum(audit[name] for name in ("sequences", "leases", "reservations", "pulls", "leaked", "torn"))
    return audit["free"] == audit["blocks"] and held == 0
