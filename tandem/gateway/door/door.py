"""The door: connections of clients are let in here, and those that only take up room are closed.

aiohttp closes a connection that is idle between two requests, however slowly bytes of the next one drip in. What it
leaves open is looked for once a second, over all connections at a time, so that nothing is done for each request:
those that have never asked anything, those whose body drips in, and those whose client has stopped reading.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final

from aiohttp import web

from tandem.gateway.door.client_connection import ClientConnection
from tandem.gateway.door.listener import BACKLOG, url_of
from tandem.gateway.door.turnstile import Turnstile
from tandem.gateway.processes.board import Counter
from tandem.gateway.processes.commons import Commons
from tandem.gateway.request.limits import Limits
from tandem.protocol.http import serving_options

PERIOD_S: Final = 1.0
"""Between two looks at all connections."""
FULL_LINE_S: Final = 10.0
"""Between two lines of the log about a full house."""
FILES_PER_CONNECTION: Final = 3
"""One for the client, and one for each leg."""
SPARE_FILES: Final = 256

log = logging.getLogger(__name__)


class Door:
    """Listens on one address.

    Args:
        limits: How many are let in, and for how long each may say nothing.
        context: What TLS is spoken with; None speaks in the clear.
    """

    def __init__(self, limits: Limits, context: ssl.SSLContext | None) -> None:
        self._limits = limits
        self._context = context
        self._connections: dict[ClientConnection, None] = {}
        self._told_full = float("-inf")
        self._listeners: list[asyncio.Server | Turnstile] = []
        self._address: tuple[Any, ...]
        self._count: Counter
        """Of the connections of all processes."""

    @property
    def options(self) -> dict[str, Any]:
        """What aiohttp is told."""
        return serving_options() | {
            "keepalive_timeout": self._limits.idle_timeout,
            "max_line_size": self._limits.max_url_bytes,
            "max_field_size": self._limits.max_header_bytes,
            "max_headers": self._limits.max_headers,
        }

    async def open(self, server: web.Server, sockets: Sequence[socket.socket], commons: Commons) -> None:
        """Take connections.

        Args:
            server: Answers the requests.
            sockets: Where to take them; they listen.
            commons: Other processes may take them there, too.
        """
        options, loop = self.options, asyncio.get_running_loop()
        _allow_files(self._limits.max_connections)
        self._address = sockets[0].getsockname()
        self._count = commons.board.counter("connections")
        handshake_s = self._limits.head_timeout if self._context else None

        def connection() -> ClientConnection:
            return ClientConnection(self, server, options)

        for one in sockets:
            if commons.has_siblings:
                self._listeners.append(Turnstile(one, connection, self._context, handshake_s, self._count))
            else:
                listener = await loop.create_server(
                    connection, sock=one, backlog=BACKLOG, ssl=self._context, ssl_handshake_timeout=handshake_s
                )
                self._listeners.append(listener)

    @property
    def url(self) -> str:
        """Where it listens, once it is open."""
        return url_of(self._address, "https" if self._context else "http")

    def close(self) -> None:
        """Let nobody in any more; who is in stays."""
        for listener in self._listeners:
            listener.close()

    async def watch(self) -> None:
        """Look for connections that only take up room, for ever; cancel the task to end it."""
        while True:
            await asyncio.sleep(PERIOD_S)
            self.look()

    def look(self) -> None:
        """Close those that have asked nothing in time, that drip, and whose client has stopped reading."""
        now, limits = asyncio.get_running_loop().time(), self._limits
        for one in tuple(self._connections):
            if not one.has_asked and now - one.opened > limits.head_timeout:
                one.wire.abort()
            elif one.is_stuck(now, limits.stall_timeout):
                log.info("a client has read nothing for %g s; its request is aborted", limits.stall_timeout)
                one.wire.abort()
            else:
                one.hurry(now, limits.body_timeout)

    def let_in(self, new: ClientConnection) -> None:
        """Count a new connection; if it is one too many, the oldest that asks nothing goes, or else itself."""
        if len(self._connections) >= self._limits.max_connections:
            self._tell_full()
            (self._least_wanted() or new).wire.abort()
        self._connections[new] = None
        self._count.add()

    def forget(self, gone: ClientConnection) -> None:
        """It is closed."""
        del self._connections[gone]
        self._count.add(-1)

    def _least_wanted(self) -> ClientConnection | None:
        idle = None
        for one in self._connections:
            if one.wire.is_closing():
                continue
            if not one.has_asked:
                return one
            if idle is None and one.is_idle:
                idle = one
        return idle

    def _tell_full(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told_full >= FULL_LINE_S:
            self._told_full = now
            log.warning(
                "%d connections are open, all that --max-connections allows; those that ask nothing are closed",
                len(self._connections),
            )


def _allow_files(connections: int) -> None:
    """Raise this process' limit on open files, as far as it may, to what so many connections need."""
    needed = connections * FILES_PER_CONNECTION + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning(
            "this process may have %d files open, which is enough for %d connections; raise `ulimit -Hn` to %d, or "
            "lower --max-connections",
            *(allowed, max(1, (allowed - SPARE_FILES) // FILES_PER_CONNECTION), needed),
        )
