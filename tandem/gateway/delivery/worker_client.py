"""HTTP to the workers: where a worker's bad answers become errors of ours, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Final

import msgspec

from tandem.errors import RequestError
from tandem.gateway.request.addresses import without_addresses
from tandem.gateway.request.internal import without_nested_tickets
from tandem.gateway.wire.exchange import Cause, Exchange, WorkerError
from tandem.gateway.wire.peer import Peers
from tandem.gateway.wire.worker import Worker
from tandem.gateway.wire.worker_access import WorkerAccess
from tandem.gateway.workers.pool import Pool
from tandem.protocol.answers import ENDINGS, error_body
from tandem.protocol.http import VerbatimError
from tandem.protocol.json_body import UNREADABLE
from tandem.protocol.renewal import Renewal
from tandem.protocol.seat_name import hide_seat_names

log = logging.getLogger(__name__)

SHOWN: Final = ("Content-Type", "Retry-After", "WWW-Authenticate")
"""Headers of a worker's refusal that reach the client."""

TELLING: Final = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
"""Of a worker's failures, those whose status tells the client something."""

LOGGED_BYTES: Final = 1000
"""Of a worker's failure, in our log."""

REFUSAL_TIMEOUT_S: Final = 5.0
"""For the few bytes of an error's body."""

REFUSAL_BYTES: Final = 2**18
"""Of a refusal that reaches the client, each of which is looked at; an engine may repeat a whole prompt in its own."""


def open_peers(access: WorkerAccess, renewal: Renewal) -> Peers:
    """The workers as peers.

    Args:
        access: What they are shown.
        renewal: Reads that again when it changes.
    """
    peers = Peers(access.tls.kept_new(renewal) if access.tls else None)
    peers.introduce(access.headers())
    if access.api_key is not None:
        renewal.watch((access.api_key,), lambda: peers.introduce(access.headers()))
    return peers


class Reason(msgspec.Struct, frozen=True):
    """Why a worker fails a request, in OpenAI's error shape."""

    message: str = ""
    code: str | int | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """What the gateway reads of an error's body."""

    error: Reason


class WorkerClient:
    """Requests to workers. Leaving a `with` block early closes the connection, so that the worker aborts."""

    def __init__(self, peers: Peers, pool: Pool) -> None:
        self._peers = peers
        self._pool = pool

    def post(
        self, exchange: Exchange, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Exchange]:
        """POST; yields the exchange when its answer has status 200, its body unread.

        Raises:
            VerbatimError: The worker answered 4xx; the client gets that answer.
            WorkerError: It cannot be reached, resets, is given up, or answers anything else.
            RequestError: It ended the request because somebody wanted it so.
        """
        return self._exchange(exchange, "POST", path, body, headers)

    def get(self, worker: Worker, path: str, headers: Mapping[str, str]) -> AbstractAsyncContextManager[Exchange]:
        """GET; yields and raises like `post`."""
        return self._exchange(Exchange(worker, "other"), "GET", path, b"", headers)

    def reported(
        self, worker: Worker, reason: Reason, how: str, *, cause: Cause = "told", status: int = 502
    ) -> RequestError:
        """The refusal to raise for what a worker says.

        In its own words where it ended the request because somebody wanted it so; else a `WorkerError`.
        """
        for known, code in ENDINGS.items():
            if reason.code == code:
                return RequestError(self._seen(reason.message.encode()).decode(), status=known, code=code)
        return WorkerError(worker, how, cause=cause, status=status)

    def told(self, worker: Worker, event: bytes) -> RequestError:
        """The refusal for an error event with which a worker ended its stream."""
        _log_words(worker, "ended its stream", event)
        return self.reported(worker, _reason(event), "failed during its answer")

    @asynccontextmanager
    async def _exchange(
        self, exchange: Exchange, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[Exchange]:
        peer = self._peers.at(exchange.worker.url)
        with self._pool.open(exchange):
            try:
                await exchange.head(peer, peer.request(method, path, headers, body))
                await self._check(exchange)
                yield exchange
            finally:
                exchange.close()

    async def _check(self, exchange: Exchange) -> None:
        response, worker = exchange.response, exchange.worker
        status = response.status
        if status == 200:
            return
        try:
            async with asyncio.timeout(REFUSAL_TIMEOUT_S):
                body = await exchange.whole()
        except TimeoutError as error:
            how = f"answered with status {status} and never finished"
            raise WorkerError(worker, how, cause="status_5xx" if status >= 500 else "bad_answer") from error
        if not 400 <= status < 500:
            _log_words(worker, f"answered with status {status}", body)
            told = status if status in TELLING else 502
            how = f"answered with status {status}"
            raise self.reported(worker, _reason(body), how, cause="status_5xx", status=told)
        raise self._refusal(exchange, body)

    def _refusal(self, exchange: Exchange, body: bytes) -> RequestError:
        """A worker's 4xx as the client gets it."""
        worker, status = exchange.worker, exchange.response.status
        told = {name: value for name in SHOWN if (value := exchange.response.header(name.lower()))}
        shown = {name: self._seen(value.encode("latin-1")).decode("latin-1") for name, value in told.items()}
        message = f"{worker.name} refused the request with status {status}"
        if len(body) > REFUSAL_BYTES:
            message += f" and {len(body)} bytes of words; more than {REFUSAL_BYTES} are not passed on: look at its log"
            body = msgspec.json.encode(error_body(message, status=status))
            shown["Content-Type"] = "application/json"
        try:
            seen = self._seen(without_nested_tickets(body))
        except UNREADABLE:
            return WorkerError(worker, f"refused with status {status} in no words for a client", cause="bad_answer")
        return VerbatimError(message, status=status, body=seen, headers=shown)

    def _seen(self, words: bytes) -> bytes:
        """A worker's words as a client may see them."""
        return without_addresses(hide_seat_names(words), [worker.url for worker in self._pool.workers])


def _log_words(worker: Worker, what: str, words: bytes) -> None:
    """A worker's words may hold addresses: they are for our log, not for the client."""
    log.warning("%s %s: %s", worker.name, what, words[:LOGGED_BYTES].decode(errors="replace"))


def _reason(body: bytes) -> Reason:
    try:
        return msgspec.json.decode(body, type=ErrorAnswer).error
    except UNREADABLE:
        return Reason()
