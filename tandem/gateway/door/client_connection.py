"""A client's connection, which can be asked whether it only takes up room."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from contextlib import suppress
from typing import Any, Final, Protocol, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import LineTooLong

from tandem.errors import RequestError
from tandem.protocol.http import refusal_response

SLOWEST: Final = 8192
"""Bytes per second at which a body may come."""
CLIENTS_FAULTS: Final = (HttpProcessingError, web.RequestPayloadError, RequestError)
"""What reading a body raises."""


class Doorkeeper(Protocol):
    """Who knows of all connections."""

    def let_in(self, new: ClientConnection) -> None:
        """Count a new one."""

    def forget(self, gone: ClientConnection) -> None:
        """It is closed."""


class ClientConnection(web.RequestHandler):
    """One client's connection.

    Args:
        door: Told when it opens and when it closes.
        server: Answers its requests.
        options: Of aiohttp.
    """

    __slots__ = ("_door", "_sending", "_sending_since", "_stuck_bytes", "_stuck_since", "opened", "wire")

    def __init__(self, door: Doorkeeper, server: web.Server, options: dict[str, Any]) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._door = door
        self.opened = self._stuck_since = self._sending_since = 0.0
        self._stuck_bytes = 0
        """Of its answer, how many its client had not taken at the last look."""
        self._sending: web.BaseRequest | None = None
        """The request whose body was not whole at the last look."""
        self.wire: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note it; called by the event loop."""
        super().connection_made(transport)
        self.wire = cast("asyncio.Transport", transport)  # aiohttp forgets its own when it closes, with bytes unsent
        self.opened = self._stuck_since = self._loop.time()
        self._door.let_in(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget it; called by the event loop."""
        self._door.forget(self)
        super().connection_lost(exc)

    @property
    def has_asked(self) -> bool:
        """Whether a request's head has come."""
        return self._request_count > 0

    @property
    def is_idle(self) -> bool:
        """Whether it is between two requests, or before the first."""
        return self._current_request is None

    def is_stuck(self, now: float, patience_s: float) -> bool:
        """Whether its client has read nothing for so long; to be asked again and again."""
        waiting = self.wire.get_write_buffer_size()
        if waiting:
            waiting += _unread(self.wire)
        # Nothing is added while writing is paused, nor after the answer, so bytes that are read make it less.
        if not waiting or waiting < self._stuck_bytes or not (self.writing_paused or self.is_idle):
            self._stuck_since = now
        self._stuck_bytes = waiting
        return now - self._stuck_since > patience_s

    def hurry(self, now: float, patience_s: float) -> None:
        """Refuse a request whose body has taken longer than this and the time that it needs at `SLOWEST`."""
        request = self._current_request
        if request is None or request.content.is_eof():
            self._sending = None
        elif request is not self._sending:
            self._sending, self._sending_since = request, now
        elif now - self._sending_since > patience_s + request.content.total_bytes / SLOWEST:
            self._lingering_time = 0.0  # the rest of it is not waited for
            request.content.set_exception(
                RequestError("the body came too slowly; send it again", status=408, code="body_too_slow")
            )

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log what aiohttp did not foresee; that a client's body cannot be read is no error of ours."""
        if isinstance(options.get("exc_info"), CLIENTS_FAULTS):
            self.logger.info("the rest of a body cannot be read")
        else:
            super().log_exception(*args, **options)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; an expectation is refused before any middleware, and here gets OpenAI's error shape."""
        if isinstance(resp, web.HTTPExpectationFailed):
            message = "Expect: nothing but 100-continue is understood; leave the header out"
            resp = refusal_response(RequestError(message, status=resp.status, code="unknown_expectation"))
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Refuse what is no HTTP, or too much of it, in OpenAI's error shape."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        self.logger.info("no HTTP from %s", request.remote)
        response = refusal_response(_refusal(exc))
        response.force_close()
        return response


def _unread(wire: asyncio.Transport) -> int:
    """Bytes that the kernel has and the other side has not: of these there are megabytes, and they go unnoticed."""
    count = bytearray(4)
    with suppress(OSError):  # the connection is closing, or this system does not tell
        fcntl.ioctl(wire.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
    return int.from_bytes(count, sys.byteorder)


def _refusal(error: HttpProcessingError) -> RequestError:
    """What is wrong with a request's head."""
    if isinstance(error, LineTooLong):
        line, limit, *_ = error.args
        if bytes(line).startswith(b"/"):  # no header's name does
            message = f"the URL has more than {limit} bytes; shorten it"
            return RequestError(message, status=414, code="url_too_long")
        message = f"a header has more than {limit} bytes; shorten it"
        return RequestError(message, status=431, code="headers_too_large")
    if "Too many headers" in error.message:
        return RequestError("there are too many headers; send fewer", status=431, code="headers_too_large")
    reason = " ".join(error.message.partition(":\n")[0].split())
    return RequestError(f"this is no sound HTTP request: {reason}", code="invalid_http")
