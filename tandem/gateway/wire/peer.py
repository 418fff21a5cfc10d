"""Workers as peers on the network: connections to them, kept for the next request."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from tandem.gateway.wire.connection import Connection, Response

CONNECT_TIMEOUT_S: Final = 2.0
"""A host of the same network answers in milliseconds, or not at all."""
KEEPALIVE_S: Final = 4.0
"""Below the 5 s after which uvicorn, and so vLLM, closes an idle connection: a POST must not meet that close."""
LONGEST: Final = 2**20
"""Bytes of an answer to a short question; those of ours have a few hundred."""
PORTS: Final = {"http": 80, "https": 443}
NOTHING: Final[Mapping[str, str]] = {}


class Peer:
    """One worker's address, and the connections to it that are free.

    Args:
        url: Its base address.
        tls: How it is recognised where that is `https`.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or PORTS[parts.scheme]
        self._tls = tls if parts.scheme == "https" else None
        # Answers are handed on without a look inside, so they cannot be unpacked.
        self._same = f" HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept-Encoding: identity\r\n"
        self._free: deque[Connection] = deque()
        self.introduction = ""
        """Header lines of every request."""

    def free(self) -> Connection | None:
        """A connection that is open already; the last used, so that the others grow old."""
        self._let_go()
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
        return None

    async def dial(self) -> Connection:
        """A new connection.

        Raises:
            OSError: There is none; the address may be none, too.
        """
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._keep), self._host, self._port, ssl=self._tls
            )
        except UnicodeError as error:  # a host name that is none
            raise OSError(f"{self._host}: {error}") from error
        return connection

    def request(
        self, method: str, path: str, headers: Mapping[str, str] = NOTHING, body: bytes = b""
    ) -> tuple[bytes, bytes]:
        """A request as it goes out: head and body."""
        length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
        head = f"{method} {path}{self._same}{self.introduction}{_lines(headers)}{length}\r\n"
        return head.encode(errors="surrogateescape"), body

    def close(self) -> None:
        """Close the connections that are free."""
        while self._free:
            self._free.pop().abort()

    def _keep(self, connection: Connection) -> None:
        connection.free_since = asyncio.get_running_loop().time()
        self._let_go()
        self._free.append(connection)

    def _let_go(self) -> None:
        oldest = asyncio.get_running_loop().time() - KEEPALIVE_S
        while self._free and self._free[0].free_since < oldest:
            self._free.popleft().abort()


class Peers:
    """All workers as peers, by their base addresses.

    Args:
        tls: How workers at `https` are recognised, and we to them; by default by this machine's authorities.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._peers: dict[str, Peer] = {}
        self._introduction = ""

    def introduce(self, headers: Mapping[str, str]) -> None:
        """Say these headers to everybody from now on."""
        self._introduction = _lines(headers)
        for peer in self._peers.values():
            peer.introduction = self._introduction

    def at(self, url: str) -> Peer:
        """The peer at a base address."""
        found = self._peers.get(url)
        if found is None:
            if self._tls is None and url.startswith("https:"):
                self._tls = ssl.create_default_context()
            found = self._peers[url] = Peer(url, self._tls)
            found.introduction = self._introduction
        return found

    async def ask(
        self, url: str, method: str, path: str, body: bytes = b"", *, timeout_s: float, anew: bool = False
    ) -> tuple[int, bytes]:
        """Ask a short question: status and body of the answer; an empty body where it is longer than any of ours.

        Args:
            url: Whom, by base address.
            method: `GET` or `POST`.
            path: What.
            body: Of a `POST`, JSON.
            timeout_s: For all of it.
            anew: Over a new connection: the others may be dead while their worker is well.

        Raises:
            OSError: There was no answer, or not in time.
        """
        peer = self.at(url)
        headers = {"Content-Type": "application/json"} if body else NOTHING
        async with asyncio.timeout(timeout_s):
            connection = (None if anew else peer.free()) or await peer.dial()
            response = connection.send(peer.request(method, path, headers, body))
            try:
                await response.head()
                return response.status, await _short(response)
            finally:
                response.close()

    def close(self) -> None:
        """Close what nobody uses."""
        for peer in self._peers.values():
            peer.close()


def _lines(headers: Mapping[str, str]) -> str:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    assert lines.count("\n") == lines.count("\r") == len(headers), "a header with a line end"
    return lines


async def _short(response: Response) -> bytes:
    body = bytearray()
    while piece := await response.piece():
        body += piece
        if len(body) > LONGEST:
            return b""
    return bytes(body)
