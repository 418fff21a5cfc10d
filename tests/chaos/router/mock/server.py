"""One mock instance as a process: `python -m chaos.router.mock.server --role prefill --port 26001 --dialect vllm`."""

from __future__ import annotations

import argparse
import ctypes
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web

from chaos.router.mock.account import Account
from chaos.router.mock.faults import Faults
from chaos.router.mock.language import spelled, tokenized
from chaos.router.mock.puller import Puller
from chaos.router.mock.rooms import Rooms
from chaos.router.mock.serving import Serving
from chaos.router.mock.settings import Settings
from chaos.router.mock.tickets import TicketBook
from chaos.router.mock.wire import MODEL, error_answer

CAPABILITIES = ("reserve", "release", "resume", "ticket_reuse", "early_ticket", "named_ticket", "choices")
MAX_MODEL_LEN = 8192
PR_SET_PDEATHSIG = 1
BIND_S = 8.0


class Server:
    """The routes."""

    def __init__(self, role: str, port: int, dialect: str, lease_s: float) -> None:
        self.role, self.port, self.dialect, self.lease_s = role, port, dialect, lease_s
        self.engine_id = f"engine-{uuid.uuid4().hex[:12]}"
        self.account, self.faults, self.rooms = Account(), Faults(), Rooms(lease_s)
        self.tickets = TicketBook(self.engine_id, port, lease_s)

    def application(self) -> web.Application:
        """All that is listened to."""
        app = web.Application(client_max_size=64 * 2**20)
        app.cleanup_ctx.append(self._running)
        app.router.add_post("/v1/completions", self.generate)
        app.router.add_post("/v1/chat/completions", self.generate)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/mock/state", self.state)
        self.faults.add_to(app)
        app.router.add_post("/mock/settings", self.set)
        app.router.add_post("/mock/pull", self.pull)
        app.router.add_post("/mock/give_back", self.give_back)
        if self.dialect == "native":
            app.router.add_get("/identity", self.identity)
            app.router.add_post("/tandem/release", self.release)
            app.router.add_post("/tandem/reserve", self.reserve)
        else:
            app.router.add_post("/tokenize", self.tokenize)
            app.router.add_post("/detokenize", self.detokenize)
        return app

    async def _running(self, app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as http:
            self.serving = Serving(
                dialect=self.dialect,
                engine_id=self.engine_id,
                port=self.port,
                account=self.account,
                faults=self.faults,
                tickets=self.tickets,
                rooms=self.rooms,
                puller=Puller(http, self.account, self.dialect),
            )
            yield

    async def generate(self, request: web.Request) -> web.StreamResponse:
        return await self.serving.generate(request)

    async def models(self, _: web.Request) -> web.Response:
        card = {"id": MODEL, "object": "model", "created": 1, "owned_by": "mock", "root": MODEL}
        return web.json_response({"object": "list", "data": [card | {"max_model_len": MAX_MODEL_LEN}]})

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"engine_id": self.engine_id}) if self.dialect == "native" else web.Response()

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self._page())

    def _page(self) -> str:
        prefix = "vllm:" if self.dialect == "vllm" else "tandem_"
        held = sum(ticket.blocks for ticket in self.tickets.held)
        values = {
            "num_requests_running": self.account.active.total(),
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": held / 10_000,
            "generation_tokens_total": self.account.tokens,
            "nixl_num_kv_expired_reqs_total": self.tickets.ends["expired"],
        }
        return "".join(f'{prefix}{name}{{model_name="{MODEL}"}} {value}\n' for name, value in values.items())

    async def identity(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "role": self.role,
                "engine_id": self.engine_id,
                "model": MODEL,
                "digest": "00" * 16,
                "max_model_len": MAX_MODEL_LEN,
                "version": "0.1.0",
                "capabilities": CAPABILITIES,
                "tensor_parallel_size": 1,
            }
        )

    async def release(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if "ticket" in asked:
            released = self.tickets.release(asked["ticket"])
        else:
            released = self.rooms.release(asked["reservation"])
        return web.json_response({"released": released})

    async def reserve(self, request: web.Request) -> web.Response:
        name = self.rooms.reserve((await request.json())["tokens"])
        if name is None:
            return web.json_response(error_answer("no room", 503, "no_room"), status=503)
        return web.json_response({"reservation": name, "expires_in": self.lease_s})

    async def tokenize(self, request: web.Request) -> web.Response:
        ids = tokenized((await request.json()).get("prompt", ""))
        return web.json_response({"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids})

    async def detokenize(self, request: web.Request) -> web.Response:
        spelling = b"".join(map(spelled, (await request.json())["tokens"]))
        return web.json_response({"prompt": spelling.decode(errors="replace")})

    async def pull(self, request: web.Request) -> web.Response:
        """Another instance reads a ticket's blocks."""
        asked = await request.json()
        verdict = await self.tickets.pull(
            asked["engine_id"], asked["ticket"], asked["content"], strict=self.dialect == "native"
        )
        return web.json_response({"verdict": verdict})

    async def give_back(self, request: web.Request) -> web.Response:
        """Another instance will not read them."""
        return web.json_response({"released": self.tickets.release((await request.json())["ticket"])})

    async def state(self, _: web.Request) -> web.Response:
        """What is held and what was done wrongly."""
        held = self.tickets.held
        told: dict[str, Any] = {
            "role": self.role,
            "engine_id": self.engine_id,
            "leases": len(held),
            "blocks": sum(ticket.blocks for ticket in held),
            "reservations": len(self.rooms),
            "tickets": dict(self.tickets.ends),
        }
        return web.json_response(told | self.account.told())

    async def set(self, request: web.Request) -> web.Response:
        """Change some settings."""
        settings = msgspec.to_builtins(self.serving.settings) | await request.json()
        self.serving.settings = msgspec.convert(settings, Settings)
        return web.json_response(settings)


def bound(port: int) -> socket.socket:
    """A socket that listens on a port, as soon as nobody's outgoing connection happens to have its number.

    Raises:
        OSError: It stays taken.
    """
    limit = time.monotonic() + BIND_S
    while True:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            sock.close()
            if time.monotonic() > limit:
                raise
            time.sleep(0.1)
        else:
            return sock


def die_with_parent() -> None:
    """Linux kills this process when its parent ends, even while it is frozen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve until SIGTERM, which breaks off what is under way, as vLLM does."""
    parser = argparse.ArgumentParser(prog="mock instance")
    parser.add_argument("--role", choices=("prefill", "decode"), required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dialect", choices=("vllm", "native"), required=True)
    parser.add_argument("--lease", type=float, default=30.0)
    given = parser.parse_args()
    die_with_parent()
    web.run_app(
        Server(given.role, given.port, given.dialect, given.lease).application(),
        sock=bound(given.port),
        print=None,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
