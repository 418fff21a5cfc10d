"""An HTTP/1.1 connection to a worker: one request at a time, and its answer as it comes.

The gateway's cost is made here, so nothing is done that it does not need: a request goes out as the bytes it is given,
and of an answer only its framing is read, by a parser in C. No redirect is followed, nothing is unpacked, and nothing
is sent a second time, because nobody could know here whether it was received.

Source: RFC 9112 (HTTP/1.1).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

FRAMING_LIMIT: Final = 2**16
"""Bytes that may come without a byte of a body: of a head, of trailers, of a chunk's extensions."""
HELD_LIMIT: Final = 2**18
"""Bytes of a body that nobody has read yet; from there on its worker waits, and not our memory grows."""


DEAD_S: Final = 15
"""So long after it is gone without a word, as a host without power is, the kernel counts a peer as dead."""
OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", DEAD_S // 3),
            ("TCP_KEEPINTVL", DEAD_S // 3),
            ("TCP_KEEPCNT", 2),
            ("TCP_USER_TIMEOUT", 1000 * DEAD_S),
        )
        if hasattr(socket, name)
    ),
)
"""Of a connection's socket, where the system knows them. Source: tcp(7)."""


class NoHttpError(ConnectionError):
    """What came is no answer of HTTP/1.1."""


class Response:
    """The answer to one request: its head, and its body as it comes. It has one reader at a time.

    Args:
        connection: Where it comes from, until `close`.
    """

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        """Of its head; 0 before that has come."""
        self._connection: Connection | None = connection
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._fields: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._held = 0
        self._framing = 0
        self._is_whole = self._keeps = False
        self._failure: OSError | None = None
        self._reader: asyncio.Future[None] | None = None

    def header(self, name: str) -> str:
        """The value of a header, which is asked for in lower case; empty where there is none."""
        return self._fields.get(name.encode(), b"").decode("latin-1").strip()

    async def head(self) -> None:
        """Wait for status and headers.

        Raises:
            NoHttpError: Something else came.
            OSError: The connection is gone, or was given up.
        """
        while not self.status:
            await self._news()

    async def piece(self) -> bytes:
        """What has come of the body since the last call, at least a byte; empty at its end. Raises like `head`."""
        while not self._pieces:
            if self._is_whole:
                return b""
            await self._news()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if self._connection is not None:
            self._connection.go_on()
        return piece

    def close(self) -> None:
        """Be done with it. Its connection takes another request if the answer was whole, and is cut if it was not."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.end(ConnectionAbortedError("given up"))
            connection.finish(keep=self._keeps and self._is_whole)

    def feed(self, data: bytes) -> None:
        """Bytes came."""
        assert self._parser is not None
        self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._spoil(str(error))
        if self._framing > FRAMING_LIMIT:
            self._spoil(f"{self._framing} bytes without a body")
        self._wake()

    def end(self, error: Exception | None) -> None:
        """No more will come: an answer that does not say how long it is ends so, any other breaks off."""
        if not self._is_whole and self._failure is None:
            ends_so = self.status and not self.header("content-length") and not self.header("transfer-encoding")
            if error is None and ends_so:
                self._is_whole = True
            else:
                self._failure = error if isinstance(error, OSError) else ConnectionResetError("closed")
        self._parser = None  # it holds our methods
        self._wake()

    def on_message_begin(self) -> None:
        """Parser: an answer begins; one that nobody asked for is no reason to trust the connection."""
        if self._is_whole:
            self._keeps = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser: a header, or a trailer, which nobody reads."""
        if not self.status:
            self._fields.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Parser: the head is here; that of an interim answer is forgotten."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 100:  # RFC 9110 section 15
            self._spoil(f"status {status}")
        elif status < 200:
            self._fields.clear()
        elif not self._is_whole:
            self.status = status
            self._keeps = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Parser: some of the body."""
        if not self._is_whole:
            self._framing = 0
            self._pieces.append(body)
            self._held += len(body)
            if self._held > HELD_LIMIT and self._connection is not None:
                self._connection.hold_on()

    def on_message_complete(self) -> None:
        """Parser: an answer ends."""
        if self.status:
            self._is_whole = True

    def _spoil(self, why: str) -> None:
        self._keeps = False
        if not self._is_whole and self._failure is None:
            self._failure = NoHttpError(why)

    async def _news(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Connection(asyncio.Protocol):
    """A connection that is open, or was.

    Args:
        on_free: Called when it may take another request.
    """

    def __init__(self, on_free: Callable[[Connection], None]) -> None:
        self._on_free = on_free
        self._response: Response | None = None
        self._is_held = False
        self.free_since = 0.0
        """Since when it waits for a request, in seconds of the loop's clock; kept by whoever keeps it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open. TCP_NODELAY is on: asyncio and uvloop see to that."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not say that they are
        if (its_socket := transport.get_extra_info("socket")) is not None:
            for option in OPTIONS:
                its_socket.setsockopt(*option)

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent."""
        return not self._transport.is_closing()

    def send(self, request: Sequence[bytes]) -> Response:
        """Send a request; `Response.close` must be called in the end."""
        assert self._response is None
        self._response = response = Response(self)
        if self.is_open:
            self._transport.writelines(request)
        else:
            response.end(None)
        return response

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer; if nobody has asked for one, this cannot go on."""
        if self._response is None:
            self._transport.abort()
        else:
            self._response.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed."""
        if self._response is not None:
            self._response.end(error)

    def hold_on(self) -> None:
        """Take no more of the answer for now."""
        if not self._is_held and self.is_open:
            self._is_held = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Take more of the answer."""
        if self._is_held and self.is_open:
            self._is_held = False
            self._transport.resume_reading()

    def finish(self, *, keep: bool) -> None:
        """The answer is done with; unless it is to be kept, the connection is cut, so that the worker learns of it."""
        self._response = None
        self.go_on()
        if keep and self.is_open:
            self._on_free(self)
        else:
            self._transport.abort()

    def abort(self) -> None:
        """Cut it."""
        self._transport.abort()
