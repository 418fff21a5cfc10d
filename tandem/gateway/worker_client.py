"""HTTP to the workers: where aiohttp's errors and a worker's bad answers become ours, once, and are counted."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Final

import aiohttp
import msgspec

from tandem.errors import RequestError
from tandem.gateway.metrics import GatewayMetrics
from tandem.gateway.pool import Worker
from tandem.protocol.answers import ENDINGS
from tandem.protocol.http import VerbatimError
from tandem.protocol.seat_name import hide_seat_names

Response = aiohttp.ClientResponse

log = logging.getLogger(__name__)

SHOWN: Final = ("Content-Type", "Retry-After", "WWW-Authenticate")
"""Headers of a worker's refusal that reach the client."""

PASSED_ON: Final = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
"""Of a worker's failures, those whose status tells the client something."""

LOGGED_BYTES: Final = 1000
"""Of a worker's failure, in our log."""

ANSWER_LIMIT: Final = 2**28
"""Bytes of a whole answer: 128 choices with all that can be asked about each token have less."""

CONNECT_TIMEOUT_S: Final = 5.0
REFUSAL_TIMEOUT_S: Final = 5.0
"""For the few bytes of an error's body."""
KEEPALIVE_S: Final = 4.0
"""Below the 5 s after which uvicorn, and so vLLM, closes an idle connection: a POST must not meet that close."""


def open_session() -> aiohttp.ClientSession:
    """The one long-lived session of a gateway; call it inside the running loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        headers={"Accept-Encoding": "identity"},  # the relay never looks inside, so it cannot unpack
    )


PIECEMEAL_BYTES: Final = 2**20
"""Bodies from this size on are written piece by piece, so that one long prompt does not hold up every other stream."""


class Reason(msgspec.Struct, frozen=True):
    """Why a worker fails a request, in OpenAI's error shape."""

    message: str = ""
    code: str | int | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """What the gateway reads of an error's body."""

    error: Reason


class WorkerClient:
    """Requests to workers. Leaving a `with` block early closes the connection, so that the worker aborts."""

    def __init__(self, session: aiohttp.ClientSession, metrics: GatewayMetrics) -> None:
        self._session = session
        self._metrics = metrics

    def post(
        self, worker: Worker, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Response]:
        """POST; yields an answer with status 200, its body unread.

        Raises:
            VerbatimError: The worker answered 4xx; the client gets that answer.
            RequestError: 502, 503 or 504, when it cannot be reached, resets or answers anything else.
        """
        return self._exchange(worker, "POST", path, body, headers)

    def get(self, worker: Worker, path: str, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Response]:
        """GET; yields and raises like `post`."""
        return self._exchange(worker, "GET", path, None, headers)

    async def read(self, worker: Worker, response: Response) -> bytes:
        """The rest of a body.

        Raises:
            RequestError: 502, when it breaks off or has no end.
        """
        body = bytearray()
        async for piece in self.pieces(worker, response):
            body += piece
            if len(body) > ANSWER_LIMIT:
                raise self.failed(worker, f"answered with more than {ANSWER_LIMIT / 2**20:g} MiB")
        return bytes(body)

    async def pieces(self, worker: Worker, response: Response) -> AsyncIterator[bytes]:
        """A body as it comes; raises like `read`."""
        try:
            async for piece in response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise self.failed(worker, "broke off its answer") from error

    def failed(self, worker: Worker, how: str, *, status: int = 502) -> RequestError:
        """Count a failure of `worker` and return the refusal to raise; it names the worker and never its address."""
        if status != HTTPStatus.GATEWAY_TIMEOUT:  # the client's deadline, which is not the worker's failure
            self._metrics.failed(worker)
        message = f"{worker.name} {how}; try again, and look at its log if this stays"
        return RequestError(message, status=status, code="worker_failed")

    def reported(self, worker: Worker, reason: Reason, how: str, *, status: int = 502) -> RequestError:
        """The refusal to raise for what a worker says.

        In its own words where it ended the request because somebody wanted it so; else like `failed`.
        """
        for known, code in ENDINGS.items():
            if reason.code == code:
                return RequestError(reason.message, status=known, code=code)
        return self.failed(worker, how, status=status)

    def told(self, worker: Worker, event: bytes) -> RequestError:
        """The refusal for an error event with which a worker ended its stream."""
        _log_words(worker, "ended its stream", event)
        return self.reported(worker, _reason(event), "failed during its answer")

    @asynccontextmanager
    async def _exchange(
        self, worker: Worker, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncIterator[Response]:
        try:
            response = await self._session.request(
                method, f"{worker.url}{path}", data=_payload(body), headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientConnectorError, TimeoutError) as error:
            raise self.failed(worker, "cannot be reached") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self.failed(worker, "closed the connection before it answered") from error
        async with response:
            await self._check(worker, response)
            yield response

    async def _check(self, worker: Worker, response: Response) -> None:
        status = response.status
        if status == 200:
            return
        try:
            async with asyncio.timeout(REFUSAL_TIMEOUT_S):
                body = await self.read(worker, response)
        except TimeoutError as error:
            raise self.failed(worker, f"answered with status {status} and never finished") from error
        if not 400 <= status < 500:
            _log_words(worker, f"answered with status {status}", body)
            told = status if status in PASSED_ON else 502
            raise self.reported(worker, _reason(body), f"answered with status {status}", status=told)
        shown = {name: response.headers[name] for name in SHOWN if name in response.headers}
        message = f"{worker.name} refused the request with status {status}"
        raise VerbatimError(message, status=status, body=hide_seat_names(body), headers=shown)


def _log_words(worker: Worker, what: str, words: bytes) -> None:
    """A worker's words may hold addresses: they are for our log, not for the client."""
    log.warning("%s %s: %s", worker.name, what, words[:LOGGED_BYTES].decode(errors="replace"))


def _reason(body: bytes) -> Reason:
    try:
        return msgspec.json.decode(body, type=ErrorAnswer).error
    except msgspec.DecodeError:
        return Reason()


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    return io.BytesIO(body) if body and len(body) >= PIECEMEAL_BYTES else body
