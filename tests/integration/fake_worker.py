"""An inference instance as far as the gateway can tell: real HTTP, scripted answers, a memory of what it was sent."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Script = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]

TICKET = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2, 3]],
    "remote_engine_id": "engine-a",
    "remote_request_id": "cmpl-77-abc",
    "remote_host": "10.0.0.9",
    "remote_port": 5600,
    "tp_size": 2,
    "remote_registration_generation": 4,
    "a_key_of_tomorrow": {"x": [1.5, None]},
    "transfer_mode": "pull",
}

WORDS = ("Hel", "lo ", "wörld", "!")


@dataclass
class FakeWorker:
    """One worker; tests replace `script` and read the rest."""

    script: Script
    capabilities: tuple[str, ...]
    healthy: bool = True
    unhealthy: int = 503
    """The status of its health check while it is not."""
    frozen: bool = False
    """Takes connections and says nothing more to anybody."""
    dead: bool = False
    """Resets every connection."""
    said: dict[str, Any] = field(default_factory=lambda: {"role": "both"})
    """What it tells of itself besides."""
    identify: Callable[[], Awaitable[web.StreamResponse]] | None = None
    """Answers in place of that."""
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "m", "object": "model"}])
    spell: Callable[[list[int]], str] | None = None
    """The text of tokens, where it tells that."""
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    listing: int = 200
    """The status of its list of models."""
    released: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    renews: bool = True
    """Whether it confirms that its tickets are good."""
    renewed: list[str] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(request.headers)
        self.arrived.set()
        try:
            await self.struck(request)
            return await self.script(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.set()
            raise

    async def struck(self, request: web.Request) -> None:
        """Nothing, while the worker is alive."""
        if self.dead:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        if self.frozen:
            await asyncio.Event().wait()

    async def health(self, request: web.Request) -> web.Response:
        await self.struck(request)
        told = {"engine_id": self.said["engine_id"]} if "engine_id" in self.said else {}
        return web.json_response(told, status=200 if self.healthy else self.unhealthy)

    async def identity(self, request: web.Request) -> web.StreamResponse:
        await self.struck(request)
        if self.identify is not None:
            return await self.identify()
        if not self.capabilities:
            raise web.HTTPNotFound
        return web.json_response({"capabilities": self.capabilities} | self.said)

    async def listed(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models}, status=self.listing)

    async def detokenize(self, request: web.Request) -> web.Response:
        if self.spell is None:
            raise web.HTTPNotFound
        return web.json_response({"prompt": self.spell((await request.json())["tokens"])})

    async def release(self, request: web.Request) -> web.Response:
        await self.released.put((await request.json())["ticket"])
        return web.json_response({})

    async def renew(self, request: web.Request) -> web.Response:
        self.renewed.append((await request.json())["ticket"])
        return web.json_response({"renewed": self.renews})


async def whole_with_ticket(_: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """What a prefill instance answers."""
    choice = {"index": 0, "text": "Hel", "finish_reason": "length"}
    return web.json_response({"id": "x", "choices": [choice], "kv_transfer_params": TICKET})


def by_leg(prefill: Script, alone: Script, *, decode: Script | None = None) -> Script:
    """A worker that does one thing when it prefills, another with a ticket, another when it serves alone."""

    async def script(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        kv = body.get("kv_transfer_params")
        chosen = alone if kv is None else prefill if kv["do_remote_decode"] else decode
        assert chosen is not None
        return await chosen(request, body)

    return script


def early_ticket(rest: Script) -> Script:
    """A prefill instance that streams its ticket and then goes on as `rest` says."""

    async def script(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, [b'data: {"choices": []}\n\n', with_ticket(None)])
        await rest(request, body)
        await response.write(with_ticket("length") + b"data: [DONE]\n\n")
        return response

    return script


def failing_prefill(when: asyncio.Event, error: dict[str, Any]) -> Script:
    """A prefill instance that streams its ticket and says this error when the event is set."""

    async def script(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, [with_ticket(None)])
        await when.wait()
        await response.write(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
        return response

    return script


def with_ticket(finish_reason: str | None) -> bytes:
    choice = {"index": 0, "text": "", "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice], "kv_transfer_params": TICKET}).encode() + b"\n\n"


async def words(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """What a decode instance answers: WORDS, streamed or whole, as a chat or not."""
    chat = "messages" in body
    if body.get("stream"):
        told = [chunk(word, chat=chat, end="stop" if word is WORDS[-1] else None) for word in WORDS]
        return await stream(request, [*told, b"data: [DONE]\n\n"])
    text = "".join(WORDS)
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choice = {"index": 0, **said, "finish_reason": "stop"}
    head = {"id": "cmpl-1", "object": "chat.completion" if chat else "text_completion", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    return web.json_response({**head, "choices": [choice], "usage": usage, "kv_transfer_params": {"left": "over"}})


def answers(status: int, payload: Any) -> Script:
    """A script that always gives one answer."""

    async def script(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(payload, status=status)

    return script


def answers_late(status: int, payload: Any) -> Script:
    """The same a moment later."""

    async def script(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return await answers(status, payload)(request, body)

    return script


async def never(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
    """Takes the request and does not answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def words_then_never(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Begins a stream and does not end it."""
    await stream(request, [chunk("Hel", chat=False)])
    return await never(request, body)


async def cut_short(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Begins a stream and resets the connection in the middle of an event."""
    response = await stream(request, [chunk("Hel", chat=False), b'data: {"choices": [{"te'])
    assert request.transport is not None
    request.transport.close()
    return response


def failing_stream(error: dict[str, Any]) -> Script:
    """Begins a stream and ends it as vLLM does when it fails."""

    async def script(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        said = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
        return await stream(request, [chunk("Hel", chat=False), said + b"data: [DONE]\n\n"])

    return script


async def without_done(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Ends a stream cleanly, but early."""
    return await stream(request, [chunk("Hel", chat=False)])


def chunk(text: str, *, chat: bool, end: str | None = None) -> bytes:
    choice = {"index": 0, **({"delta": {"content": text}} if chat else {"text": text}), "finish_reason": end}
    kind = "chat.completion.chunk" if chat else "text_completion"
    event = {"id": "cmpl-1", "object": kind, "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


async def stream(request: web.Request, pieces: list[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
        await asyncio.sleep(0)
    return response


@asynccontextmanager
async def running(
    script: Script, capabilities: tuple[str, ...] = ("release",), tls: ssl.SSLContext | None = None
) -> AsyncIterator[FakeWorker]:
    """A worker on a free port of the loopback interface; without capabilities it is one like vLLM's."""
    worker = FakeWorker(script, capabilities)
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/v1/completions", worker.generate)
    app.router.add_post("/v1/chat/completions", worker.generate)
    app.router.add_post("/tandem/release", worker.release)
    app.router.add_post("/detokenize", worker.detokenize)
    app.router.add_post("/tandem/renew", worker.renew)
    app.router.add_get("/identity", worker.identity)
    app.router.add_get("/health", worker.health)
    app.router.add_get("/v1/models", worker.listed)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    worker.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield worker
    finally:
        await runner.cleanup()
