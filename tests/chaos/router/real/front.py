"""A real instance behind what may go wrong on its way: `python -m chaos.router.real.front --engine tandem ...`.

It has a mock's routes, so that the kit strikes it like one: `/mock/fault`, `/mock/half_open`, `/mock/settings`,
`/mock/state`. All others are the instance's own. The instance is a child in the same process group, so that a kill and
a freeze hit both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web

from chaos.router.mock.account import Account
from chaos.router.mock.faults import Faults, reset
from chaos.router.mock.line import EndedError, Line
from chaos.router.mock.server import bound, die_with_parent
from chaos.router.mock.settings import Settings
from chaos.router.mock.wire import error_answer
from chaos.router.real.engine import Engine
from tandem.protocol.lifeline import LIFELINE_VARIABLE

HOP = ("host", "content-length", "transfer-encoding", "connection", "keep-alive")
STOP_S = 4.0
NO_SETTINGS = Settings(prefill_s=0.0, step_s=0.0)


class Front:
    """The routes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.account, self.faults, self.settings = Account(), Faults(), NO_SETTINGS
        self.engine_id = f"front-{uuid.uuid4().hex[:12]}"

    def application(self) -> web.Application:
        """All that is listened to."""
        app = web.Application(client_max_size=64 * 2**20)
        app.cleanup_ctx.append(self._running)
        for path in ("/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, self.generate)
        app.router.add_get("/mock/state", self.state)
        self.faults.add_to(app)
        app.router.add_post("/mock/settings", self.set)
        app.router.add_get("/health", self.health)
        app.router.add_route("*", "/{path:.*}", self.other)
        return app

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        self.child = started(self.engine)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as self.http:
            yield
        self.child.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self.child.wait, STOP_S)
        self.child.kill()

    async def health(self, request: web.Request) -> web.StreamResponse:
        """503 until the instance listens; where it has ended, nobody shall wait for it."""
        if self.child.poll() is not None:
            os._exit(1)
        try:
            return await self.other(request)
        except aiohttp.ClientError:
            return web.Response(status=503)

    async def other(self, request: web.Request) -> web.Response:
        """Passed on as it is."""
        raw = await request.read()
        async with self._asked(request, raw) as response:
            return web.Response(status=response.status, body=await response.read(), content_type=response.content_type)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Passed on, with what goes wrong."""
        raw, fault = await request.read(), self.faults.next()
        if fault is not None and fault.kind == "status":
            return web.json_response(error_answer("made to fail", fault.status), status=fault.status)
        if fault is not None and fault.kind == "reset":
            raise reset(request)
        if fault is not None and fault.kind == "empty":
            return web.Response()
        prefills = bool((msgspec.json.decode(raw).get("kv_transfer_params") or {}).get("do_remote_decode"))
        line = Line(request, self.faults, fault)
        try:
            with self.account.request("prefilling" if prefills else "decoding"):
                await asyncio.sleep(self.settings.prefill_s if prefills else 0)
                async with self._asked(request, raw) as response:
                    if response.status != 200:
                        body, kind = await response.read(), response.content_type
                        return web.Response(status=response.status, body=body, content_type=kind)
                    await self._answer(response, line)
        except EndedError:
            await line.response.write_eof()
            return line.response
        return await line.end()

    async def _answer(self, response: aiohttp.ClientResponse, line: Line) -> None:
        if response.content_type == "text/event-stream":
            await line.begin(response.headers["Content-Type"])
            await self._events(response, line)
        else:
            await line.whole(msgspec.Raw(await response.read()))

    async def _events(self, response: aiohttp.ClientResponse, line: Line) -> None:
        rest = b""
        async for piece in response.content.iter_any():
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                await asyncio.sleep(self.settings.step_s)
                await line.write(event + b"\n\n")
                self.account.tokens += 1

    def _asked(self, request: web.Request, raw: bytes) -> Any:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        return self.http.request(request.method, self.engine.url + request.path_qs, data=raw, headers=headers)

    async def state(self, _: web.Request) -> web.Response:
        """What is held, by the instance itself."""
        told, held = self.account.told(), await self.engine.held(self.http)
        told["active"] |= held.pop("active")
        hidden = [f"127.0.0.1:{port}" for port in (self.engine.port, self.engine.kv_port)]
        return web.json_response(told | held | {"engine_id": self.engine_id, "secrets": hidden})

    async def set(self, request: web.Request) -> web.Response:
        """Change some settings, or with `null` take back all changes."""
        asked = await request.json()
        before = msgspec.to_builtins(NO_SETTINGS if asked is None else self.settings)
        self.settings = msgspec.convert(before | (asked or {}), Settings)
        return web.json_response({})


def started(engine: Engine) -> subprocess.Popen[bytes]:
    """The instance, which ends with this process."""
    inherited = {name: value for name, value in os.environ.items() if name != LIFELINE_VARIABLE}
    return subprocess.Popen(
        engine.command, stdin=subprocess.DEVNULL, env=inherited | engine.environment, preexec_fn=die_with_parent
    )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="front of a real instance")
    parser.add_argument("--engine", choices=("tandem", "vllm"), required=True)
    parser.add_argument("--role", choices=("prefill", "decode"), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lease", type=float, default=30.0)
    for name in ("--port", "--engine-port", "--kv-port"):
        parser.add_argument(name, type=int, required=True)
    given = parser.parse_args()
    die_with_parent()
    engine = Engine(
        name=given.engine,
        role=given.role,
        model=given.model,
        port=given.engine_port,
        kv_port=given.kv_port,
        lease_s=given.lease,
    )
    web.run_app(
        Front(engine).application(),
        sock=bound(given.port),
        print=None,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
