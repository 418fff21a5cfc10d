"""The holder's port against whatever comes: strangers, pullers that freeze or leave, and far too many of them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from contextlib import suppress

import msgspec
import pytest
from hand_off_rig import LARGE, SMALL, TICKET, assert_arrived, empty, holding, listening, pull, request, serving, until
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem.errors import TransferError
from tandem.kv import local_socket, server
from tandem.kv.fake_holder import FakeHolder
from tandem.kv.messages import MAX_REQUEST, Received, Waiting, frame
from tandem.kv.puller import Peer
from tandem.kv.server import TransferServer

on_linux = pytest.mark.skipif(not local_socket.SUPPORTED, reason="only Linux has abstract sockets")


def local(peer: Peer) -> socket.socket:
    sock = local_socket.connect(peer.engine_id)
    assert sock is not None
    return sock


def asking(transport: str) -> bytes:
    return frame(msgspec.structs.replace(request(), transports=[transport]))


async def said(peer: Peer, *words: bytes) -> bytes:
    """What the port answers to bytes, until it hangs up."""
    reader, writer = await asyncio.open_connection(peer.host, peer.port)
    try:
        for word in words:
            writer.write(word)
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def serves(holder: FakeHolder, peer: Peer) -> None:
    """The port still does what it is for."""
    for transport in ("shm", "tcp"):
        holder.add("good", [0])
        shards = empty(SMALL, 1)
        await pull(peer, request("good"), shards, [0], 5, [transport])
        assert_arrived(shards, [0], [0], len(holder.shards.caches[0].blocks))


@settings(max_examples=60, deadline=None)
@given(stray=st.binary(max_size=300) | st.binary(max_size=300).map(lambda body: len(body).to_bytes(4, "big") + body))
@example(b"GET / HTTP/1.1\r\n\r\n")
@example(b"\0\0\0\2\xc1\xc1")
@example((MAX_REQUEST + 1).to_bytes(4, "big"))
@example(frame(Received()))
def test_stray_bytes_are_hung_up_on(stray: bytes) -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        async with serving(holder, 0.05) as peer:
            assert await said(peer, stray) == b""
        async with serving(holder) as peer:
            await serves(holder, peer)

    asyncio.run(scenario())


def test_stray_bytes_in_the_middle_of_a_pull_end_it() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        ticket = holder.add(TICKET, [0])
        async with serving(holder) as peer:
            await said(peer, asking("tcp"), b"\0\0\0\2\xc1\xc1")
            await until(lambda: holder.pulls and holder.pulls[0].closed)
            assert not ticket.ended
            await serves(holder, peer)

    asyncio.run(scenario())


def test_a_puller_that_reads_slowly_is_waited_for_while_it_says_so() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        ticket = holder.add(TICKET, [0])
        async with serving(holder, 0.3) as peer:
            _, writer = await asyncio.open_connection(peer.host, peer.port)
            writer.write(asking("tcp"))
            for _ in range(5):
                await asyncio.sleep(0.2)
                writer.write(frame(Waiting()))
            writer.write(frame(Received()))
            await until(lambda: ticket.ended)
            writer.close()

    asyncio.run(scenario())


def test_a_connection_that_says_nothing_is_closed() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        async with serving(holder, 0.2) as peer:
            assert await said(peer) == b""
            assert await said(peer, asking("tcp")[:-1]) == b""
            assert not holder.pulls

    asyncio.run(scenario())


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_puller_that_freezes_is_given_up_and_holds_up_nobody(transport: str) -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(LARGE, 64))
        ticket = holder.add(TICKET, range(64))
        async with serving(holder, 0.5) as peer:
            with local(peer) if transport == "shm" else socket.create_connection((peer.host, peer.port)) as frozen:
                frozen.sendall(asking(transport))
                await until(lambda: holder.pulls)
                holder.add("good", [5])
                shards = empty(LARGE, 1)
                await pull(peer, request("good"), shards, [0], 5, [transport])
                assert_arrived(shards, [5], [0], 64)
                assert not holder.pulls[0].closed
                await until(lambda: holder.pulls[0].closed)
        assert not ticket.ended

    asyncio.run(scenario())


@pytest.mark.parametrize("ready", [0, 32, 64])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_puller_that_leaves_ends_its_pull(transport: str, ready: int) -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(LARGE, 64))
        ticket = holder.add(TICKET, range(64), ready)
        async with serving(holder, 1) as peer:
            with local(peer) if transport == "shm" else socket.create_connection((peer.host, peer.port)) as leaving:
                leaving.sendall(asking(transport))
                await until(lambda: holder.pulls)
            await until(lambda: holder.pulls[0].closed)
        assert not ticket.ended

    asyncio.run(scenario())


def small_reader(peer: Peer) -> socket.socket:
    """A connection whose kernel takes little that is not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((peer.host, peer.port))
    return sock


async def go_on(sock: socket.socket, transport: str) -> None:
    """Be a puller that is never done, and never silent: says that it still reads, or reads a little."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    await loop.sock_sendall(sock, asking(transport))
    with suppress(OSError):
        while transport == "shm" or await loop.sock_recv(sock, 100):
            if transport == "shm":
                await loop.sock_sendall(sock, frame(Waiting()))
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_pull_that_never_ends_is_cut_off_with_its_ticket(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CHECK", 0.05)

    async def scenario() -> None:
        holder = FakeHolder(holding(LARGE, 64))
        ticket = holder.add(TICKET, range(64))
        async with serving(holder) as peer:
            with local(peer) if transport == "shm" else small_reader(peer) as sock:
                pulling = asyncio.create_task(go_on(sock, transport))
                await until(lambda: holder.pulls)
                await asyncio.sleep(0.5)
                assert not holder.pulls[0].closed
                ticket.ended = True
                await until(lambda: holder.pulls[0].closed, 1)
                pulling.cancel()
                await asyncio.wait([pulling])

    asyncio.run(scenario())


def test_a_message_has_to_come_in_time_as_a_whole() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        holder.add(TICKET, [0])
        async with serving(holder, 0.5) as peer:
            _, writer = await asyncio.open_connection(peer.host, peer.port)
            writer.write(asking("tcp"))
            for byte in frame(Received()):
                writer.write(bytes([byte]))
                await asyncio.sleep(0.06)
            assert len(frame(Received())) * 0.06 > 0.8
            assert holder.pulls[0].closed
            assert not holder.tickets[TICKET].ended
            writer.close()

    asyncio.run(scenario())


def test_a_puller_that_never_pauses_has_the_loop_not_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message after the other is there already; without a turn of the loop nobody else would be served."""
    monkeypatch.setattr(server, "CHECK", 0.05)

    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        ticket = holder.add(TICKET, [0])
        async with serving(holder) as peer:
            with socket.create_connection((peer.host, peer.port)) as sock:
                sock.sendall(asking("tcp"))
                await until(lambda: holder.pulls)
                pouring = threading.Thread(target=pour, args=(sock, frame(Waiting()) * 1000), daemon=True)
                pouring.start()
                await serves(holder, peer)
                assert pouring.is_alive()
                assert not holder.pulls[0].closed
                ticket.ended = True
                await until(lambda: holder.pulls[0].closed)
                await asyncio.to_thread(pouring.join)

    asyncio.run(scenario())


def pour(sock: socket.socket, words: bytes) -> None:
    with suppress(OSError):
        while True:
            sock.sendall(words)


def test_a_flood_of_silent_connections_is_bounded_and_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_STRANGERS", 20)

    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 2))
        ticket = holder.add(TICKET, [0, 1], ready=1)
        async with serving(holder) as peer:
            pulling = asyncio.ensure_future(pull(peer, request(), empty(SMALL, 2), [0, 1], 5, ["tcp"]))
            await until(lambda: holder.pulls)
            flood = [socket.create_connection((peer.host, peer.port)) for _ in range(100)]
            await serves(holder, peer)
            for sock in flood[:80]:
                assert sock.recv(1) == b""
            ticket.compute(2)
            assert await pulling == b"state"
            for sock in flood:
                sock.close()

    asyncio.run(scenario())


def test_only_so_many_pulls_are_served_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_PULLS", 3)

    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 4))
        ticket = holder.add(TICKET, [0], ready=0)
        async with serving(holder) as peer:
            shards = empty(SMALL, 4)
            pulls = [asyncio.ensure_future(pull(peer, request(), shards, [block], 5, ["tcp"])) for block in range(3)]
            await until(lambda: len(holder.pulls) == 3)
            with pytest.raises(TransferError, match="refused: 3 pulls are under way already"):
                await pull(peer, request(), shards, [3], 5, ["tcp"])
            ticket.compute(1)
            await asyncio.wait(pulls)
            assert sum(one.exception() is None for one in pulls) == 1  # and the ticket was used then
            await serves(holder, peer)

    asyncio.run(scenario())


def test_a_process_without_descriptors_goes_on_once_it_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        async with serving(holder) as peer:
            loop, failures = asyncio.get_running_loop(), 3
            accept = loop.sock_accept

            async def failing(sock: socket.socket) -> object:
                nonlocal failures
                failures -= 1
                if failures >= 0:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                return await accept(sock)

            monkeypatch.setattr(loop, "sock_accept", failing)
            for _ in range(3):
                await serves(holder, peer)

    asyncio.run(scenario())


@on_linux
def test_another_user_is_not_answered_on_the_local_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        async with serving(holder, transports=["shm", "tcp"]) as peer:
            sock = local(peer)
            monkeypatch.setattr(local_socket, "same_user", lambda sock: False)
            reader, writer = await asyncio.open_unix_connection(sock=sock)
            assert await reader.read() == b""
            writer.close()
            # Nor is another user's socket trusted: the pull goes over TCP.
            holder.add(TICKET, [0])
            await pull(peer, request(), empty(SMALL, 1), [0], 5)

    asyncio.run(scenario())


@on_linux
def test_a_taken_name_leaves_the_way_over_tcp() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        taken = local_socket.listen(holder.engine_id)
        assert taken is not None
        with taken:
            async with serving(holder) as peer:
                holder.add(TICKET, [0])
                await pull(peer, request(), empty(SMALL, 1), [0], 5)

    asyncio.run(scenario())


def test_a_stopped_server_cuts_off_its_pulls_and_frees_its_port() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 2))
        holder.add(TICKET, [0, 1], ready=1)
        listener = listening()
        stopping = TransferServer(holder, listener, 5)
        port = listener.getsockname()[1]
        await stopping.start()
        peer = Peer("127.0.0.1", port, holder.engine_id)
        pulling = asyncio.ensure_future(pull(peer, request(), empty(SMALL, 2), [0, 1], 5))
        await until(lambda: holder.pulls)
        await stopping.stop()
        assert holder.pulls[0].closed
        with pytest.raises(TransferError, match="broke off"):
            await pulling
        with pytest.raises(TransferError, match="not reachable"):
            await pull(peer, request(), empty(SMALL, 2), [0, 1], 5)

    asyncio.run(scenario())
