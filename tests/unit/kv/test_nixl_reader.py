"""The reader's bookkeeping, over an agent that reads nothing: who is known, which stages there are."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import torch

from tandem.errors import TransferError
from tandem.kv import nixl_reader
from tandem.kv.nixl_reader import MOST, STAGES, Reader, Region

CPU = torch.device("cpu")
REGION = Region(0, 100, 0, "DRAM")


class StrangeError(Exception):
    """Stands for NIXL's own."""


class FakeAgent:
    """Remembers whom it knows and what is registered; its reads end when they are told to."""

    def __init__(self) -> None:
        self.known: Counter[str] = Counter()
        self.registered = 0
        self.state = "DONE"
        self.failure: Exception | None = None

    def add_remote_agent(self, metadata: bytes) -> str:
        self.known[metadata.decode()] += 1
        return metadata.decode()

    def remove_remote_agent(self, name: str) -> None:
        self.known[name] -= 1

    def register_memory(self, data: list[Any]) -> None:
        self.registered += len(data)

    def deregister_memory(self, data: list[Any]) -> None:
        self.registered -= len(data)

    def get_reg_descs(self, data: list[Any]) -> list[Any]:
        return data

    def get_xfer_descs(self, places: Any, kind: str) -> None: ...

    def initialize_xfer(self, *_: Any) -> object:
        if self.failure is not None:
            raise self.failure
        return object()

    def transfer(self, handle: object) -> None: ...

    def check_xfer_state(self, handle: object) -> str:
        return self.state

    def release_xfer_handle(self, handle: object) -> None: ...


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> FakeAgent:
    agent = FakeAgent()
    monkeypatch.setattr(nixl_reader, "new_agent", lambda: agent)
    monkeypatch.setattr(nixl_reader, "_errors", lambda: (StrangeError,))
    return agent


def test_a_holder_stays_known_while_another_pull_reads_from_it(agent: FakeAgent) -> None:
    reader = Reader(10)
    reader.meet(b"a")
    reader.meet(b"a")
    reader.part(b"a", whole=False)
    assert agent.known == {"a": 1}
    reader.part(b"a", whole=True)
    assert agent.known == {"a": 0}
    reader.meet(b"a")
    reader.part(b"a", whole=True)
    assert agent.known == {"a": 1}


def test_only_so_many_holders_that_nobody_pulls_from_stay_known(agent: FakeAgent) -> None:
    reader = Reader(10)
    reader.meet(b"busy")
    for number in range(MOST + 5):
        reader.meet(str(number).encode())
        reader.part(str(number).encode(), whole=True)
    assert +agent.known == {"busy": 1, **{str(number): 1 for number in range(5, MOST + 5)}}


def test_only_so_many_stages_are_made_and_others_wait_for_them(agent: FakeAgent) -> None:
    async def scenario() -> None:
        reader, reads = Reader(10), 0
        reader.meet(b"a")

        async def read() -> None:
            nonlocal reads
            stage = await reader.read(b"a", REGION, [0], 10, CPU)
            reads += 1
            await asyncio.sleep(0.005)
            reader.give_back(stage)

        await asyncio.gather(*(read() for _ in range(5 * STAGES)))
        assert (reads, agent.registered) == (5 * STAGES, STAGES)

    asyncio.run(scenario())


def test_a_read_that_cannot_begin_costs_no_stage(agent: FakeAgent) -> None:
    agent.failure = StrangeError("not found")

    async def scenario() -> None:
        reader = Reader(10)
        reader.meet(b"a")
        for _ in range(2 * STAGES):
            with pytest.raises(TransferError, match="NIXL cannot read from it"):
                await reader.read(b"a", REGION, [0], 10, CPU)
        assert agent.registered == 1

    asyncio.run(scenario())


def test_nothing_is_read_from_a_holder_before_reads_that_were_given_up_have_ended(agent: FakeAgent) -> None:
    async def scenario() -> None:
        reader = Reader(10)
        reader.meet(b"frozen")
        reader.meet(b"other")
        agent.state = "PROC"
        for _ in range(3):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(b"frozen", REGION, [0], 10, CPU)
        assert agent.registered == 1
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read(b"other", REGION, [0], 10, CPU)
        assert agent.registered == 2
        agent.state = "DONE"
        await reader.read(b"frozen", REGION, [0], 10, CPU)
        assert agent.registered == 1, "those of the two that were given up are gone"

    asyncio.run(scenario())
