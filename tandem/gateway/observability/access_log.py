"""One line for each request, once it is over: who asked, who served it, how it ended, where its time went.

Nothing that a client wrote stands in it but its `X-Request-Id`, which is letters, digits and `._-`: no prompt, no
answer, no key, no query, no path that is not served here. Of instances it has the names and not the addresses.
`/health` and `/metrics` have no lines.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from tandem.gateway.observability.log_file import LogFile
from tandem.gateway.observability.visibility import Visibility
from tandem.gateway.request.record import CLIENT_LEFT, Record
from tandem.protocol.http import Handler

Field = tuple[str, Any]

RECORD: Final = web.RequestKey("record", Record)
"""Where a request's record is found by whoever has the request."""
QUIET: Final = ("/health", "/metrics", "/admin/topology")
"""Not logged where they are only read: they are asked for again and again."""
BARE: Final = re.compile(r"[A-Za-z0-9._:/@+-]+")
"""Values that need no quotes."""

log = logging.getLogger(__name__)


class AccessLog:
    """Writes the lines.

    Args:
        options: How.

    Raises:
        UsageError: The file cannot be written to.
    """

    def __init__(self, options: Visibility) -> None:
        path = options.access_log
        self._file = None if path is None else LogFile(None if path == "-" else Path(path))
        self._write = _json if options.access_log_format == "json" else _text
        self._tells_clients = options.access_log_clients

    @property
    def middlewares(self) -> list[Any]:
        """What an application needs to be logged."""
        return [] if self._file is None else [self._log]

    def close(self) -> None:
        """Be done with it."""
        if self._file is not None:
            self._file.close()

    @web.middleware
    async def _log(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began, response = time.monotonic(), None
        try:
            response = await handler(request)
            return response
        finally:
            path = _path(request)
            if not (request.method == "GET" and path in QUIET) and self._file is not None:
                told = dict(self._fields(request, path, response, time.monotonic() - began))
                self._file.write(self._write(told))

    def _fields(
        self, request: web.Request, path: str, response: web.StreamResponse | None, total_s: float
    ) -> Iterator[Field]:
        record: Record | None = request.get(RECORD)
        yield "time", datetime.now(UTC).isoformat(timespec="milliseconds")
        if record is not None:
            yield "id", record.id
            yield "key", record.key
        if self._tells_clients:
            yield "client", request.remote
        yield "method", request.method
        yield "path", path
        yield "status", CLIENT_LEFT if response is None else response.status
        yield "total_ms", _ms(total_s)
        yield "request_bytes", request.content_length
        yield "answer_bytes", _answer_bytes(response)
        if record is not None and record.ended is not None:
            yield from fields_of(record)


def fields_of(record: Record) -> Iterator[Field]:
    """What a line tells of how a request went; None for what is not known."""
    yield "outcome", record.outcome
    for name in ("Route", "Prefill", "Decode"):
        yield name.lower(), record.served_by.get(f"X-Tandem-{name}")
    yield from ((f"{kind}_tokens", count) for kind, count in record.tokens)
    yield "events", record.events or None
    yield "ttft_ms", _ms(record.ttft_s)
    yield from ((f"{part}_ms", _ms(seconds)) for part, seconds in record.parts.items())
    yield "longest_gap_ms", _ms(record.longest_gap_s or None)
    yield "tries", record.tries
    yield "continuations", record.continuations
    yield "cause", record.cause


def _path(request: web.Request) -> str:
    """The endpoint, and of any other path only that it is none."""
    resource = request.match_info.route.resource
    return "-" if resource is None else resource.canonical


def _answer_bytes(response: web.StreamResponse | None) -> int | None:
    """Of its body; of a stream with its head."""
    if isinstance(response, web.Response):
        return len(response.body) if isinstance(response.body, bytes | bytearray) else 0
    return None if response is None else response.body_length


def _json(told: dict[str, Any]) -> bytes:
    return msgspec.json.encode({name: value for name, value in told.items() if value is not None}) + b"\n"


def _text(told: dict[str, Any]) -> bytes:
    return " ".join(f"{name}={_bare(value)}" for name, value in told.items() if value is not None).encode() + b"\n"


def _bare(value: Any) -> str:
    text = str(value)
    return text if BARE.fullmatch(text) else msgspec.json.encode(text).decode()


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
