"""Connections to a server on loopback: which are used again, which are not, and what becomes of what has no end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvloop

from tandem.gateway.wire import peer as peers_of
from tandem.gateway.wire.connection import HELD_LIMIT, Connection
from tandem.gateway.wire.peer import Peer, Peers

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Talk = Callable[["Server", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request on a connection, and counts both."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.connections = 0
        self.open: list[asyncio.BaseTransport] = []
        self.heads: list[bytes] = []
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.append(writer.transport)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                await self.talk(self, reader, writer)
        self.ended.set()
        writer.transport.abort()


async def says_ok(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


async def says_ok_once(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)
    await writer.drain()
    writer.close()


async def never_stops(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


async def says_nothing(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@asynccontextmanager
async def serving(talk: Talk, host: str = "127.0.0.1") -> AsyncIterator[tuple[Server, str]]:
    server = Server(talk)
    listening = await asyncio.start_server(server.serve, host)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield server, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        listening.close()
        await asyncio.sleep(0.01)  # a connection may be on its way
        for transport in server.open:
            transport.close()
        await asyncio.sleep(0)


def looped(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A coroutine function as a test, on the event loop that the gateway runs on."""

    def test() -> None:
        uvloop.run(asyncio.wait_for(scenario(), 15))

    test.__name__ = scenario.__name__
    return test


async def ask(peers: Peers, url: str) -> tuple[int, bytes]:
    return await peers.ask(url, "GET", "/health", timeout_s=1)


@looped
async def test_a_connection_is_used_again() -> None:
    async with serving(says_ok) as (server, url):
        peers = Peers()
        for _ in range(3):
            assert await ask(peers, url) == (200, b"ok")
        assert server.connections == 1
        assert (
            server.heads
            == [f"GET /health HTTP/1.1\r\nHost: {url[7:]}\r\nAccept-Encoding: identity\r\n\r\n".encode()] * 3
        )
        await asyncio.gather(*(ask(peers, url) for _ in range(4)))
        assert server.connections == 4
        peers.close()
        await server.ended.wait()


@looped
async def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    async with serving(says_ok_once) as (server, url):
        peers = Peers()
        for count in (1, 2, 3):
            assert await ask(peers, url) == (200, b"ok")
            await asyncio.sleep(0.02)
            assert server.connections == count
        peers.close()


@looped
async def test_a_connection_grows_old() -> None:
    async with serving(says_ok) as (server, url):
        peers = Peers()
        peer = peers.at(url)
        await asyncio.gather(ask(peers, url), ask(peers, url))
        for connection in peer._free:
            connection.free_since -= peers_of.KEEPALIVE_S + 1
        assert peer.free() is None
        assert await ask(peers, url) == (200, b"ok")
        assert server.connections == 3
        peers.close()


@looped
async def test_a_body_without_end_is_given_up() -> None:
    async with serving(never_stops) as (server, url):
        peers = Peers()
        assert await ask(peers, url) == (200, b"")
        await server.ended.wait()


@looped
async def test_a_slow_reader_slows_the_server() -> None:
    async with serving(never_stops) as (server, url):
        peer = Peer(url)
        response = (await peer.dial()).send(peer.request("GET", "/"))
        await response.head()
        await asyncio.sleep(0.2)
        assert len(await response.piece()) < 2 * HELD_LIMIT + 2**20
        for _ in range(20):
            assert await response.piece()
        response.close()
        await server.ended.wait()


@looped
async def test_silence_is_no_answer() -> None:
    async with serving(says_nothing) as (server, url):
        with pytest.raises(TimeoutError):
            await Peers().ask(url, "GET", "/", timeout_s=0.05)
        await server.ended.wait()


@looped
async def test_a_long_request_is_sent_whole() -> None:
    body = bytes(range(256)) * 2**17
    received: list[bytes] = []

    async def takes(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readexactly(len(body)))
        writer.write(OK)

    async with serving(takes) as (server, url):
        peers = Peers()
        assert await peers.ask(url, "POST", "/long", body, timeout_s=5) == (200, b"ok")
        assert received == [body]
        assert b"Content-Length: %d\r\n" % len(body) in server.heads[0]
        peers.close()


@looped
async def test_ipv6_has_its_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with serving(says_ok, "::1") as (server, url):
        peers = Peers()
        assert await ask(peers, url) == (200, b"ok")
        assert f"Host: {url[7:]}\r\n".encode() in server.heads[0]
        peers.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://" + "a" * 64 + ".x:80", "http://name.invalid:80"])
def test_who_cannot_be_reached_is_an_oserror(url: str) -> None:
    async def scenario() -> None:
        with pytest.raises(OSError):
            await ask(Peers(), url)

    uvloop.run(scenario())


def test_headers_go_out_as_they_came_in() -> None:
    peer = Peer("http://host:80")
    head, body = peer.request("POST", "/v1/x", {"traceparent": b"\xff\xe4".decode(errors="surrogateescape")}, b"{}")
    assert head == (
        b"POST /v1/x HTTP/1.1\r\nHost: host:80\r\nAccept-Encoding: identity\r\n"
        b"traceparent: \xff\xe4\r\nContent-Length: 2\r\n\r\n"
    )
    assert body == b"{}"


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\rb"])
def test_no_header_brings_another_one(value: str) -> None:
    with pytest.raises(AssertionError, match="line end"):
        Peer("http://host:80").request("GET", "/", {"Authorization": value})


@looped
async def test_dialling_is_given_up_without_a_trace() -> None:
    async with serving(says_ok) as (_, url):
        dialling = asyncio.create_task(Peer(url).dial())
        await asyncio.sleep(0)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling


@looped
async def test_open_means_that_a_request_may_be_sent() -> None:
    async with serving(says_ok) as (_, url):
        connection: Connection = await Peer(url).dial()
        assert connection.is_open
        connection.abort()
        assert not connection.is_open
