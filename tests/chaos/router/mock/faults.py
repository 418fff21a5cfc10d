"""What goes wrong on an instance, as told by `POST /mock/fault`.

Deaths and freezes are signals and come from outside. A black hole is a socket of the kit's in the dead process' place.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Literal

import msgspec
from aiohttp import web

Kind = Literal[
    "status",  # answers requests with `status`
    "reset",  # resets the connection of requests
    "empty",  # answers 200 with an empty body
    "cut",  # resets the connection after `after` events
    "cut cleanly",  # ends the answer after `after` events as if it were whole, without [DONE]
    "slow",  # one byte per second
]

FLUSH_S = 0.05
"""So that what was written is on its way before a connection is reset."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to fail requests for generated text; health checks go on as if nothing were."""

    kind: Kind
    status: int = 500
    count: int | None = None
    """So many requests; None for all."""
    after: int = 0


class ResetError(ConnectionError):
    """The connection was reset on purpose."""


class Faults:
    """Those of one process."""

    def __init__(self) -> None:
        self._fault: Fault | None = None
        self._left: int | None = None
        self._dead: set[asyncio.BaseTransport] = set()

    def set(self, fault: Fault | None) -> None:
        """From now on; None for none."""
        self._fault, self._left = fault, fault.count if fault else None

    def add_to(self, app: web.Application) -> None:
        """Listen to what shall go wrong."""
        app.router.add_post("/mock/fault", self._set)
        app.router.add_post("/mock/half_open", self._half_open)

    async def _set(self, request: web.Request) -> web.Response:
        """Set one, or with `null` end it."""
        self.set(msgspec.json.decode(await request.read(), type=Fault | None))
        return web.json_response({})

    async def _half_open(self, request: web.Request) -> web.Response:
        """All connections but this one go dead."""
        assert request.protocol is not None
        return web.json_response({"dead": self.half_open(request.protocol._manager, spared=request.transport)})

    def next(self) -> Fault | None:
        """What happens to the request that has just come."""
        if self._left is None:
            return self._fault
        self._left -= 1
        return self._fault if self._left >= 0 else None

    def half_open(self, server: web.Server, spared: asyncio.BaseTransport | None) -> int:
        """Every connection there is goes dead without a FIN or RST, as when a firewall forgets them; new ones work."""
        transports = [one.transport for one in server.connections if one.transport not in (None, spared)]
        for transport in transports:
            transport.pause_reading()
            self._dead.add(transport)
        return len(transports)

    def is_dead(self, request: web.Request) -> bool:
        """Whether nothing gets through to this request's client any more."""
        return request.transport in self._dead


def reset(request: web.Request) -> ResetError:
    """Reset the connection; returns what to raise."""
    transport = request.transport
    if transport is not None:
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return ResetError("reset on purpose")


async def never() -> None:
    """Wait until the client, or this process, is gone."""
    await asyncio.Event().wait()
