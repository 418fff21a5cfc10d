"""What tests of the hand-off share: caches whose every number says where it is, holders here and in other processes."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.fake import FakeTransport
from tandem.kv.fake_holder import ENGINE, FakeHolder
from tandem.kv.messages import Pull
from tandem.kv.puller import Peer, Puller
from tandem.kv.server import TransferServer
from tandem.kv.shards import Shards
from tandem.kv.transport import TRANSPORTS

CPU = torch.device("cpu")
SMALL = CacheLayout(layers=3, planes=2, kv_heads=4, head_dim=5, dtype="float32", block_size=4)
LARGE = CacheLayout(layers=8, planes=2, kv_heads=4, head_dim=64, dtype="float32", block_size=16)
"""A block of a quarter MiB."""
TICKET = "ticket"
MORE_TICKETS = ("second", "third")
"""Of a holder in another process, over blocks that are computed."""
UNTOUCHED = -1.0
FAKE = FakeTransport()
TRANSPORTS["fake"] = FAKE.transport


def numbered(layout: CacheLayout, blocks: int) -> Tensor:
    """[N, L, P, S, K, D]: the number at [n, l, p, s, k, d] is its index in that order."""
    shape = (blocks, *layout.block_shape)
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def holding(layout: CacheLayout, blocks: int, ranks: int = 1) -> Shards:
    """A holder's caches, filled with `numbered`."""
    shards = empty(layout, blocks, ranks)
    whole = numbered(layout, blocks)
    for rank, cache in enumerate(shards.caches):
        heads = shards.heads(rank)
        cache.blocks.copy_(whole[..., heads.start : heads.stop, :])
    return shards


def empty(layout: CacheLayout, blocks: int, ranks: int = 1) -> Shards:
    """A puller's caches, filled with `UNTOUCHED`."""
    caches = [KVCache(layout.of_rank(rank, ranks), blocks, CPU) for rank in range(ranks)]
    for cache in caches:
        cache.blocks.fill_(UNTOUCHED)
    return Shards(layout, caches)


def assert_arrived(shards: Shards, theirs: Sequence[int], ours: Sequence[int], held: int) -> None:
    """Block theirs[i] of a holder with `held` blocks is in ours[i], on every rank; nothing else was written."""
    whole = numbered(shards.layout, held)
    for rank, cache in enumerate(shards.caches):
        expected = torch.full_like(cache.blocks, UNTOUCHED)
        heads = shards.heads(rank)
        if theirs:
            expected[torch.tensor(ours)] = whole[torch.tensor(theirs)][..., heads.start : heads.stop, :]
        assert torch.equal(cache.blocks, expected)


def request(ticket: str = TICKET, engine_id: str = ENGINE, first: int = 0) -> Pull:
    return Pull(ticket=ticket, engine_id=engine_id, digest="digest", content=b"content", first=first)


async def pull(
    peer: Peer,
    asked: Pull,
    shards: Shards,
    blocks: Sequence[int],
    limit: float,
    transports: Sequence[str] = ("shm", "tcp"),
) -> bytes:
    """One pull by a puller of its own."""
    with closing(Puller(shards, transports, limit)) as puller:
        return await puller.pull(peer, asked, blocks)


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


@asynccontextmanager
async def serving(
    holder: FakeHolder, limit: float = 5.0, transports: Sequence[str] = ("shm", "tcp")
) -> AsyncIterator[Peer]:
    listener = listening()
    server = TransferServer(holder, listener, limit, transports)
    port = listener.getsockname()[1]
    await server.start()
    try:
        yield Peer("127.0.0.1", port, holder.engine_id)
    finally:
        await server.stop()


async def until(true: Any, seconds: float = 5.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class Process:
    """A holder in a process of its own."""

    process: subprocess.Popen[str]
    peer: Peer


@contextmanager
def held_elsewhere(
    blocks: int, ready: int, ranks: int = 1, transport: str = "shm", every: float = 0.0
) -> Iterator[Process]:
    """A holder of `blocks` blocks of `LARGE`, of which `ready` are computed, and one more `every` so many seconds."""
    engine_id = f"engine-{os.getpid()}-{os.urandom(4).hex()}"
    args = [str(value) for value in (engine_id, blocks, ready, ranks, transport, every)]
    with subprocess.Popen([sys.executable, __file__, *args], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = next(int(line) for line in process.stdout if line.strip().isdigit())  # NIXL has a say there, too
            yield Process(process, Peer("127.0.0.1", port, engine_id))
        finally:
            process.kill()


async def hold(engine_id: str, blocks: int, ready: int, ranks: int, transport: str, every: float) -> None:
    holder = FakeHolder(holding(LARGE, blocks, ranks), engine_id)
    ticket = holder.add(TICKET, range(blocks), ready)
    for more in MORE_TICKETS:
        holder.add(more, range(blocks))
    async with serving(holder, 5.0, [transport]) as peer:
        print(peer.port, flush=True)
        while True:
            await asyncio.sleep(every or 60)
            if ticket.ready < blocks and holder.pulls:
                ticket.compute(ticket.ready + 1)


if __name__ == "__main__":
    name, *numbers, how, pause = sys.argv[1:]
    asyncio.run(hold(name, *map(int, numbers), how, float(pause)))
