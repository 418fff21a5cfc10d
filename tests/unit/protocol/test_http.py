"""What every server does alike: what is no HTTP is logged without its bytes."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiohttp import web

from tandem.protocol.http import app_runner, json_response


async def answered(sent: bytes) -> bytes:
    async def hello(_: web.Request) -> web.Response:
        return json_response({"hello": 1})

    app = web.Application()
    app.router.add_get("/", hello)
    runner = app_runner(app, grace=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        reader, writer = await asyncio.open_connection(*runner.addresses[0])
        writer.write(sent)
        answer = await reader.read()
        writer.close()
        return answer
    finally:
        await runner.cleanup()


def test_what_is_no_http_is_logged_without_its_bytes(caplog: pytest.LogCaptureFixture) -> None:
    secret = b"my secret prompt "
    with caplog.at_level(logging.DEBUG):
        first = asyncio.run(answered(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
        second = asyncio.run(answered(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + secret * 100 + b"\r\n\r\n"))
    assert first.startswith(b"HTTP/1.1 200")
    assert b"400" in second
    assert "Error handling request" in caplog.text
    assert "secret" not in caplog.text
