"""Clients that say nothing, drip, do not read, or come in hundreds: real sockets against a real gateway."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from certificates import Authority
from fake_worker import chunk, stream
from gateway_rig import BODY, Rig, rigged, trial

from tandem.gateway.door import door
from tandem.gateway.request.limits import Limits
from tandem.protocol.tls import TlsFiles

QUICK = Limits(head_timeout=0.4, body_timeout=0.4, idle_timeout=0.6, stall_timeout=0.5)
QUICK_HEADS = replace(QUICK, idle_timeout=60, body_timeout=60)
LATE_S = 5.0
"""Less than any time that the gateway has by default."""
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
HEAD_WITHOUT_END = (HEAD % 2).removesuffix(b"\r\n") + b"X-Padding: " + b"x" * 400
SENT = json.dumps(BODY).encode()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PERIOD_S", 0.05)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.new(tmp_path_factory.mktemp("pki"))


def served_by(authority: Authority) -> TlsFiles:
    return TlsFiles(side="server", cert=authority.pair.cert, key=authority.pair.key)


def address(rig: Rig) -> tuple[str, int]:
    host, port = rig.url.rpartition("/")[2].split(":")
    return host, int(port)


@asynccontextmanager
async def connected(rig: Rig) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address(rig))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def drip(writer: asyncio.StreamWriter, words: bytes, pause: float = 0.02) -> None:
    """A byte at a time, until the other side has enough of it."""
    for byte in words:
        if writer.transport.is_closing():
            return
        writer.write(bytes([byte]))
        await asyncio.sleep(pause)


async def seconds_until_closed(reader: asyncio.StreamReader) -> float:
    begun = asyncio.get_running_loop().time()
    with suppress(ConnectionError):
        await reader.read()
    return asyncio.get_running_loop().time() - begun


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split()[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


@trial
async def test_who_says_nothing_is_cut_off() -> None:
    async with rigged(limits=QUICK_HEADS) as rig, connected(rig) as (reader, _):
        assert 0.3 < await seconds_until_closed(reader) < LATE_S


@trial
async def test_who_drips_a_head_is_cut_off() -> None:
    async with rigged(limits=QUICK_HEADS) as rig, connected(rig) as (reader, writer):
        dripping = asyncio.create_task(drip(writer, HEAD_WITHOUT_END))
        assert 0.3 < await seconds_until_closed(reader) < LATE_S
        await dripping


def test_who_says_nothing_in_a_handshake_is_cut_off(authority: Authority) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(limits=QUICK, tls=served_by(authority)) as rig, connected(rig) as (reader, _):
            assert 0.3 < await seconds_until_closed(reader) < LATE_S

    scenario()


@trial
async def test_who_drips_a_body_is_told_and_cut_off() -> None:
    async with rigged(limits=QUICK) as rig, connected(rig) as (reader, writer):
        writer.write(HEAD % 100_000)
        dripping = asyncio.create_task(drip(writer, b"x" * 100))
        status, told = await answer(reader)
        assert (status, told["error"]["code"]) == (408, "body_too_slow")
        assert await seconds_until_closed(reader) < LATE_S
        assert rig.prefill.bodies == []
        await dripping


@trial
async def test_who_sends_a_long_body_as_fast_as_it_can_is_served() -> None:
    """Longer than the time for a body, and faster than the slowest."""
    long = json.dumps(BODY | {"prompt": "x" * 40_000}).encode()
    async with rigged(limits=QUICK) as rig, connected(rig) as (reader, writer):
        writer.write(HEAD % len(long))
        for start in range(0, len(long), 4000):
            writer.write(long[start : start + 4000])
            await asyncio.sleep(0.1)
        status, _ = await answer(reader)
        assert status == 200


@trial
async def test_an_idle_connection_is_closed_and_so_is_one_that_drips_its_next_head() -> None:
    async with rigged(limits=QUICK) as rig:
        for words in (b"", HEAD):
            async with connected(rig) as (reader, writer):
                writer.write(HEAD % len(SENT) + SENT)
                assert (await answer(reader))[0] == 200
                dripping = asyncio.create_task(drip(writer, words))
                assert 0.4 < await seconds_until_closed(reader) < LATE_S
                await dripping


def test_hundreds_that_say_nothing_keep_nobody_out(caplog: pytest.LogCaptureFixture) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(limits=Limits(max_connections=40, head_timeout=60)) as rig:
            crowd = [await asyncio.open_connection(*address(rig)) for _ in range(200)]
            for _ in range(20):
                async with connected(rig) as (reader, writer):
                    writer.write(HEAD % len(SENT) + SENT)
                    assert (await answer(reader))[0] == 200
            for _, writer in crowd:
                writer.transport.abort()

    caplog.set_level(logging.WARNING, "tandem.gateway.door.door")
    scenario()
    (line,) = {record.getMessage() for record in caplog.records}
    assert line == "40 connections are open, all that --max-connections allows; those that ask nothing are closed"


@trial
async def test_a_house_full_of_requests_lets_nobody_in_and_loses_nobody() -> None:
    begun = asyncio.Event()

    async def patient(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, [chunk("Hel", chat=False)])
        await begun.wait()
        await response.write(chunk("", chat=False, end="stop") + b"data: [DONE]\n\n")
        return response

    async with rigged(decode=patient, limits=Limits(max_connections=5)) as rig:
        busy = [await rig.post(BODY | {"stream": True}) for _ in range(5)]
        async with connected(rig) as (reader, writer):
            writer.write(HEAD % len(SENT) + SENT)
            assert await seconds_until_closed(reader) < LATE_S
        begun.set()
        for response in busy:
            assert (await response.text()).endswith("data: [DONE]\n\n")


async def endless(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    response = await stream(request, [])
    while True:
        await response.write(chunk("x" * 65536, chat=False))


@asynccontextmanager
async def one_that_asks_for_an_endless_answer(
    rig: Rig, context: ssl.SSLContext | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """Its own buffers are small, so that it does not take much without reading."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address(rig))
    name = "ca" if context else None
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096, ssl=context, server_hostname=name)
    body = json.dumps(BODY | {"stream": True}).encode()
    writer.write(HEAD % len(body) + body)
    try:
        yield reader
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_who_stops_reading_holds_nothing_for_long(over: str, authority: Authority) -> None:
    tls = served_by(authority) if over == "tls" else None
    context = TlsFiles(side="client", ca=authority.cert).context() if tls else None

    @trial
    async def scenario() -> None:
        async with (
            rigged(decode=endless, limits=QUICK, tls=tls) as rig,
            one_that_asks_for_an_endless_answer(rig, context),
        ):
            await rig.decode.arrived.wait()
            await asyncio.wait_for(rig.decode.aborted.wait(), 5)

    scenario()


@trial
async def test_who_reads_slowly_is_waited_for() -> None:
    async with rigged(decode=endless, limits=QUICK) as rig, one_that_asks_for_an_endless_answer(rig) as reader:
        for _ in range(20):
            await reader.readexactly(20_000)
            await asyncio.sleep(0.1)
        assert not rig.decode.aborted.is_set()
