"""The transfer over a real loopback socket: bytes arrive, refusals say why, broken pulls settle as broken."""

from __future__ import annotations

import asyncio
import socket
import time

import msgspec
import pytest
import torch

from tandem.errors import TransferError
from tandem.kv.transfer import Granted, Keep, Pull, TransferServer, keep_leases, pull_blocks

PULL = Pull("ticket", "engine", "digest")


class FakeHolder:
    """Grants every ticket but one, and remembers how pulls ended."""

    def __init__(self, size: int) -> None:
        self.data = torch.arange(size, dtype=torch.int64).to(torch.uint8)
        self.settled: asyncio.Queue[bool] = asyncio.Queue()
        self.kept: asyncio.Queue[Keep] = asyncio.Queue()

    def grant(self, pull: Pull) -> tuple[Granted, torch.Tensor]:
        if pull.ticket == "bad":
            raise TransferError("the ticket is used up")
        return Granted([1, 2, 3], 9, self.data.numel()), self.data

    def keep(self, keep: Keep) -> None:
        self.kept.put_nowait(keep)

    def settle(self, pull: Pull, granted: Granted, *, received: bool) -> None:
        self.settled.put_nowait(received)


def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


async def serving(holder: FakeHolder, limit: float = 5.0) -> tuple[TransferServer, int]:
    sock = listener()
    server = TransferServer(holder, sock, limit)
    await server.start()
    return server, sock.getsockname()[1]


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_bytes_arrive_whole(size: int) -> None:
    async def scenario() -> None:
        holder = FakeHolder(size)
        server, port = await serving(holder)
        granted, data = await pull_blocks("127.0.0.1", port, PULL, size, 5)
        assert granted == Granted([1, 2, 3], 9, size)
        assert torch.equal(data, holder.data)
        assert await asyncio.wait_for(holder.settled.get(), 5)
        await server.stop()

    asyncio.run(scenario())


def test_a_refusal_says_why() -> None:
    async def scenario() -> None:
        server, port = await serving(FakeHolder(1))
        with pytest.raises(TransferError, match="refused the KV pull: the ticket is used up"):
            await pull_blocks("127.0.0.1", port, Pull("bad", "engine", "digest"), 1, 5)
        await server.stop()

    asyncio.run(scenario())


def test_nobody_there_is_said_at_once() -> None:
    with listener() as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(TransferError, match=f"127.0.0.1:{port} broke off"):
        asyncio.run(pull_blocks("127.0.0.1", port, PULL, 1, 5))


def test_a_puller_that_leaves_settles_as_broken() -> None:
    async def scenario() -> None:
        holder = FakeHolder(5_000_000)
        server, port = await serving(holder)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = msgspec.msgpack.encode(PULL)
        writer.write(len(body).to_bytes(4, "big") + body)
        await writer.drain()
        writer.close()
        assert await asyncio.wait_for(holder.settled.get(), 5) is False
        await server.stop()

    asyncio.run(scenario())


def test_a_frozen_puller_is_given_up() -> None:
    async def scenario() -> None:
        holder = FakeHolder(50_000_000)
        server, port = await serving(holder, limit=0.3)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = msgspec.msgpack.encode(PULL)
        writer.write(len(body).to_bytes(4, "big") + body)
        assert await asyncio.wait_for(holder.settled.get(), 5) is False
        writer.close()
        await server.stop()

    asyncio.run(scenario())


def test_a_frozen_holder_is_given_up() -> None:
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        with pytest.raises(TransferError, match="frozen"):
            asyncio.run(pull_blocks("127.0.0.1", frozen.getsockname()[1], PULL, 1, 0.3))


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b"\x00\x00\x00\x02\xc1\xc1", b""])
def test_garbage_is_hung_up_on(garbage: bytes) -> None:
    async def scenario() -> None:
        holder = FakeHolder(1)
        server, port = await serving(holder)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(garbage)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await pull_blocks("127.0.0.1", port, PULL, 1, 5)
        await server.stop()

    asyncio.run(scenario())


def test_an_offer_of_another_size_is_not_believed() -> None:
    async def scenario() -> None:
        holder = FakeHolder(100)
        server, port = await serving(holder)
        with pytest.raises(TransferError, match="offers 100 KV bytes, this prompt has 64"):
            await pull_blocks("127.0.0.1", port, PULL, 64, 5)
        assert await asyncio.wait_for(holder.settled.get(), 5) is False
        await server.stop()

    asyncio.run(scenario())


def test_a_puller_that_gives_up_while_the_bytes_are_copied_settles_as_broken() -> None:
    class SlowHolder(FakeHolder):
        def grant(self, pull: Pull) -> tuple[Granted, torch.Tensor]:
            time.sleep(0.6)
            return super().grant(pull)

    async def scenario() -> None:
        holder = SlowHolder(10)
        server, port = await serving(holder, limit=0.2)
        with pytest.raises(TransferError, match="broke off"):
            await pull_blocks("127.0.0.1", port, PULL, 10, 5)
        assert await asyncio.wait_for(holder.settled.get(), 5) is False
        await server.stop()

    asyncio.run(scenario())


def test_leases_are_kept_over_the_wire() -> None:
    async def scenario() -> None:
        holder = FakeHolder(1)
        server, port = await serving(holder)
        await keep_leases("127.0.0.1", port, Keep("engine", ["a", "b"]), 5)
        assert await asyncio.wait_for(holder.kept.get(), 5) == Keep("engine", ["a", "b"])
        await server.stop()
        for host in ("127.0.0.1", "a" * 70, "."):
            with pytest.raises(TransferError, match="cannot be told"):
                await keep_leases(host, 1, Keep("engine", []), 5)
            with pytest.raises(TransferError, match="broke off"):
                await pull_blocks(host, 1, PULL, 1, 5)

    asyncio.run(scenario())


@pytest.mark.parametrize("offer", [([-3], 9), ([1], -1), ([1], 2**63)])
def test_an_offer_out_of_range_is_not_believed(offer: tuple[list[int], int]) -> None:
    class Rogue(FakeHolder):
        def grant(self, pull: Pull) -> tuple[Granted, torch.Tensor]:
            return Granted(*offer, 1), self.data

    async def scenario() -> None:
        server, port = await serving(Rogue(1))
        with pytest.raises(TransferError, match="broke off"):
            await pull_blocks("127.0.0.1", port, PULL, 1, 5)
        await server.stop()

    asyncio.run(scenario())
