"""Takes connections one at a time, and steps aside where others have fewer, so that processes of a gateway share them.

An event loop's own server takes all that wait at once: of forty that come together one process might get them all.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from tandem.gateway.processes.board import Counter

FULL_S: Final = 0.1
"""Before a process that cannot have more files open tries again; another one may have room."""

ASIDE_S: Final = 0.002
"""For so long a process that has more than its share leaves the next connection to another one."""
SLACK: Final = 2
"""So many more than its share it may have."""

log = logging.getLogger(__name__)


class Turnstile:
    """One socket's.

    Args:
        sock: It listens; `close` closes it.
        protocol: Makes what serves a connection.
        context: What TLS is spoken with; None speaks in the clear.
        handshake_s: Seconds that a client has for the handshake; None without TLS.
        connections: Counts those that are open, of all processes.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext | None,
        handshake_s: float | None,
        connections: Counter,
    ) -> None:
        self._sock = sock
        self._protocol = protocol
        self._context = context
        self._handshake_s = handshake_s
        self._connections = connections
        self._was_aside = False
        self._loop = asyncio.get_running_loop()
        self._entering: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._open()

    def close(self) -> None:
        """Take no more; who is in stays."""
        self._loop.remove_reader(self._sock)
        if self._again is not None:
            self._again.cancel()
        for entering in self._entering:
            entering.cancel()
        self._sock.close()

    def _open(self) -> None:
        self._loop.add_reader(self._sock, self._take)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._again = self._loop.call_later(seconds, self._open)

    def _take(self) -> None:
        self._was_aside = not self._was_aside and self._connections.own > self._connections.share + SLACK
        if self._was_aside:
            self._pause(ASIDE_S)
            return
        try:
            taken, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # another process was faster, or the client has left
        except OSError as error:
            log.warning("no connection can be taken for now: %s; raise the limit on open files", error)
            self._pause(FULL_S)
            return
        entering = self._loop.create_task(self._enter(taken))
        self._entering.add(entering)
        entering.add_done_callback(self._entering.discard)

    async def _enter(self, taken: socket.socket) -> None:
        with suppress(OSError):  # the client has left, or its handshake failed
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                self._protocol, taken, ssl=self._context, ssl_handshake_timeout=self._handshake_s
            )
