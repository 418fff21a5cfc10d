"""Hand-offs between two real processes, of which one dies, freezes or reads what is not its own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hand_off_rig import (
    CPU,
    LARGE,
    MORE_TICKETS,
    SMALL,
    TICKET,
    UNTOUCHED,
    Process,
    assert_arrived,
    empty,
    held_elsewhere,
    holding,
    pull,
    request,
    until,
)

from tandem.errors import TransferError
from tandem.kv import shared_memory
from tandem.kv.memory import allocate, seal
from tandem.kv.messages import Granted, Ready
from tandem.kv.puller import Puller
from tandem.kv.shards import Shards
from tandem.kv.shared_memory import MemoryReceiver

COUNT = 32


def fetch(
    holder: Process, shards: Any, transport: str, limit: float = 5.0, ticket: str = TICKET
) -> asyncio.Task[bytes]:
    asked = request(ticket, holder.peer.engine_id)
    return asyncio.ensure_future(pull(holder.peer, asked, shards, range(COUNT), limit, [transport]))


def mapped_caches() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:tandem-kv")


@pytest.mark.parametrize("run", [pytest.param(asyncio.run, marks=pytest.mark.full), uvloop.run])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(("ranks", "our_ranks"), [(1, 1), (2, 4), (8, 2)])
def test_blocks_arrive(run: Callable[[Any], None], transport: str, ranks: int, our_ranks: int) -> None:
    async def scenario() -> None:
        shards = empty(LARGE, COUNT, our_ranks)
        with held_elsewhere(COUNT, 1, ranks, transport, every=0.005) as holder:
            await fetch(holder, shards, transport)
            assert_arrived(shards, range(COUNT), range(COUNT), COUNT)
            with pytest.raises(TransferError, match="refused: the ticket is unknown or used"):
                await fetch(holder, shards, transport)

    run(scenario())


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(
    ("act", "reason"),
    [(signal.SIGKILL, "broke off"), (signal.SIGSTOP, r"silent for 0\.8 s; is that instance frozen")],
)
def test_a_holder_that_dies_or_freezes_is_noticed_in_time(transport: str, act: signal.Signals, reason: str) -> None:
    async def scenario() -> None:
        shards = empty(LARGE, COUNT)
        here = shards.caches[0].blocks
        with held_elsewhere(COUNT, 4, 1, transport) as holder:
            pulling = fetch(holder, shards, transport, 0.8)
            await until(lambda: bool((here[1] != UNTOUCHED).any()))
            os.kill(holder.process.pid, act)
            began = time.monotonic()
            with pytest.raises(TransferError, match=reason):
                await pulling
            assert time.monotonic() - began < 2
            before = here.clone()
            os.kill(holder.process.pid, signal.SIGCONT)
            await asyncio.sleep(0.1)
            assert bool((here == before).all())

    asyncio.run(scenario())


@pytest.mark.full
def test_memory_is_mapped_once_and_let_go_when_nobody_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "UNUSED", 0.5)

    async def scenario() -> None:
        shards, before = empty(LARGE, COUNT), mapped_caches()
        with held_elsewhere(COUNT, COUNT, ranks=2) as holder:
            puller = Puller(shards, ["shm"], 5)
            for ticket in (TICKET, *MORE_TICKETS):
                await puller.pull(holder.peer, request(ticket, holder.peer.engine_id), range(COUNT))
            assert mapped_caches() == before + 2
            await until(lambda: mapped_caches() == before)
            puller.close()

    asyncio.run(scenario())


@pytest.mark.full
def test_memory_of_a_holder_that_died_is_let_go_at_once() -> None:
    async def scenario() -> None:
        shards, before = empty(LARGE, COUNT), mapped_caches()
        with held_elsewhere(COUNT, 4) as holder:
            pulling = fetch(holder, shards, "shm")
            await until(lambda: mapped_caches() == before + 1)
            holder.process.kill()
            with pytest.raises(TransferError):
                await pulling
        assert mapped_caches() == before

    asyncio.run(scenario())


def test_memory_of_only_so_many_holders_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "MOST", 2)

    async def scenario() -> None:
        mappings = shared_memory.Mappings()
        caches = [holding(SMALL, 1) for _ in range(4)]
        for shards in caches:
            files = shared_memory.MemorySender(shards).files
            (memory,) = mappings.of(shared_memory.identity_of(files), files)
            assert bytes(memory[: SMALL.bytes_per_block]) == shards.caches[0].memory.data.numpy().tobytes()
        assert len(mappings) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("size", "blocks", "reason"),
    [(1, [0], "cannot reshape"), (4 * SMALL.bytes_per_block, [4], "it has no block 4")],
)
def test_memory_that_does_not_fit_is_not_read(size: int, blocks: list[int], reason: str) -> None:
    memory = allocate(size, CPU)
    assert memory.file is not None
    seal(memory.file)

    async def read(shards: Shards, blocks: list[int]) -> None:
        incoming = await MemoryReceiver(shards).open(Granted("shm", 1, len(blocks)), [memory.file])
        await incoming.receive(None, Ready(blocks), [0] * len(blocks))  # type: ignore[arg-type]

    async def scenario() -> None:
        shards = empty(SMALL, 2)
        with pytest.raises(TransferError, match=reason):
            await read(shards, blocks)
        with pytest.raises(TransferError, match="1 memory descriptors came for 2 ranks"):
            await MemoryReceiver(shards).open(Granted("shm", 2, 1), [memory.file])

    asyncio.run(scenario())
