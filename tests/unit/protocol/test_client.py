"""The small streaming client, against real HTTP on the loopback interface."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from certificates import Authority, Pair

from tandem.errors import ProcessError, RequestError, UsageError
from tandem.protocol import sse
from tandem.protocol.answers import AnswerHead, Piece, Usage, error_body, model_list
from tandem.protocol.client import Access, list_models, stream_chat, stream_completion
from tandem.protocol.tls import TlsFiles

Script = Callable[[web.Request], Awaitable[web.StreamResponse]]
BODY = {"prompt": "hi"}


@asynccontextmanager
async def service(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/{kind:.*}", script)
    app.router.add_get("/v1/models", script)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def streams(*pieces: bytes) -> Script:
    async def script(request: web.Request) -> web.StreamResponse:
        assert (await request.json())["stream"] is True
        response = web.StreamResponse(headers={**sse.HEADERS, "X-Tandem-Decode": "decode-0"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return script


def answers(status: int, payload: Any) -> Script:
    async def script(_: web.Request) -> web.StreamResponse:
        return web.json_response(payload, status=status)

    return script


async def completion(url: str) -> list[str]:
    async with stream_completion(url, BODY) as stream:
        return [text async for text, _ in stream]


def test_a_completion() -> None:
    head = AnswerHead.begin("completion", "1", "m")
    events = [head.chunk(Piece("a")), head.chunk(Piece("b", "stop")), head.usage_chunk(Usage(1, 2))]

    async def scenario() -> None:
        async with (
            service(streams(*map(sse.event, events), sse.DONE)) as url,
            stream_completion(url + "/v1/", BODY) as stream,
        ):
            assert stream.headers["x-tandem-decode"] == "decode-0"
            assert [pair async for pair in stream] == [("a", events[0]), ("b", events[1]), ("", events[2])]

    asyncio.run(scenario())


def test_a_chat() -> None:
    head = AnswerHead.begin("chat", "1", "m")
    events = [head.role_chunk(), head.chunk(Piece("a")), head.chunk(Piece("", "stop"))]

    async def scenario() -> None:
        async with (
            service(streams(*map(sse.event, events), sse.DONE)) as url,
            stream_chat(url, {"messages": []}) as stream,
        ):
            assert [text async for text, _ in stream] == ["", "a", ""]

    asyncio.run(scenario())


def test_models() -> None:
    async def scenario() -> None:
        async with service(answers(200, model_list(("a", "b"), 1, 2))) as url:
            assert await list_models(url) == ("a", "b")

    asyncio.run(scenario())


def test_a_key_is_shown() -> None:
    async def keyed(request: web.Request) -> web.StreamResponse:
        return web.json_response(model_list((request.headers["Authorization"],), 1, 2))

    async def scenario() -> None:
        async with service(keyed) as url:
            assert await list_models(url, Access(key="k")) == ("Bearer k",)

    asyncio.run(scenario())
    assert "k" not in repr(Access(key="k")).removeprefix("Access")


def test_a_ca_has_to_be_named(pair: Pair, authority: Authority) -> None:
    server = TlsFiles(side="server", cert=pair.cert, key=pair.key)

    async def scenario() -> None:
        async with service(answers(200, model_list(("a",), 1, 2)), server.context()) as url:
            with pytest.raises(ProcessError, match=r"TLS with it fails .*name its CA with --ca"):
                await list_models(url)
            access = Access(tls=TlsFiles(side="operator", ca=authority.cert))
            assert await list_models(url, access) == ("a",)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("script", "kind", "reason"),
    [
        (answers(429, error_body("busy", status=429)), RequestError, "^busy$"),
        (answers(500, "oops"), RequestError, "status 500.*oops"),
        (streams(sse.event(error_body("broke", status=502))), RequestError, "^broke$"),
        (streams(sse.event({"choices": []})), ProcessError, "not whole"),
    ],
)
def test_failures_are_told_in_the_services_words(script: Script, kind: type[Exception], reason: str) -> None:
    async def scenario() -> None:
        async with service(script) as url:
            with pytest.raises(kind, match=reason):
                await completion(url)

    asyncio.run(scenario())


def test_nobody_there() -> None:
    with pytest.raises(ProcessError, match=r"http://127\.0\.0\.1:1: no service answers there; start one with"):
        asyncio.run(completion("http://127.0.0.1:1"))


@pytest.mark.parametrize("url", ["localhost:9000", "", "ftp://x"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not a URL"):
        asyncio.run(completion(url))
