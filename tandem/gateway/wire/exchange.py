"""One HTTP exchange with a worker: what was asked, when it last said something, and how it is given up from outside.

Whoever reads an answer waits for its bytes and for nothing else. That a worker is frozen is noticed elsewhere
(`stalls`), and `lose` then ends the wait, in whatever stage it is.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Final, Literal

from tandem.errors import RequestError
from tandem.gateway.wire.connection import Connection, NoHttpError, Response
from tandem.gateway.wire.peer import CONNECT_TIMEOUT_S, Peer
from tandem.gateway.wire.prefilled import Prefilled
from tandem.gateway.wire.silence import PIECE_BYTES, Silence
from tandem.gateway.wire.worker import Worker

Stage = Literal["prefill", "stream", "whole", "other"]
"""What the worker does for us; how long it may be silent depends on it."""

Cause = Literal[
    "unreachable",  # no connection, or not in time
    "reset",  # the connection closed before the answer began
    "status_5xx",  # any status that is neither 200 nor 4xx
    "no_ticket",  # a prefill that gave nothing to decode with
    "bad_answer",  # not what OpenAI's API says, or without end
    "told",  # an error in the middle of its answer, in its own words
    "cut",  # the answer broke off, or ended before `[DONE]`
    "frozen",  # no answer to health checks
    "silent",  # an answer to health checks and nothing else for too long
    "late",  # the request's time was over
    "starved",  # given up for the prefill that it needed
    "left",  # taken out of the service, or started again, by who looks after it
]
"""What a worker did instead of its part: few, so that they can be counted."""

FIRST_DECODE: Final = re.compile(r"\bdecode;dur=(\d{1,12}(?:\.\d{1,6})?)(?=[,;\s]|$)")
"""In a `Server-Timing` header, in milliseconds. Source: W3C, Server Timing."""
ANSWER_LIMIT: Final = 2**28
"""Bytes of a whole answer: 128 choices with all that can be asked about each token have less."""


class WorkerError(RequestError):
    """A worker did not do its part of a request; another one may. Its address is never told.

    Args:
        worker: Who.
        how: What it did instead.
        cause: The same, for those who count.
        status: HTTP status for a client that gets no better answer.
    """

    def __init__(self, worker: Worker, how: str, *, cause: Cause, status: int = 502) -> None:
        message = f"{worker.name} {how}; try again, and look at its log if this stays"
        super().__init__(message, status=status, code="worker_failed")
        self.worker = worker
        self.cause = cause


class Exchange:
    """A request to a worker, and its answer; `WorkerClient` sends it.

    Args:
        worker: To whom.
        stage: What for.
        work: What it has to do before its answer begins, in tokens of a prompt.
        until: When nobody wants the answer any more, by `time.monotonic`; None for never.
        too_slow: How many workers were given up as too slow for the same request before.
    """

    def __init__(
        self, worker: Worker, stage: Stage, *, work: float = 0, until: float | None = None, too_slow: int = 0
    ) -> None:
        self.worker = worker
        self.stage = stage
        self.source: Worker | None = None
        """Who holds the keys and values that it needs to begin."""
        self.sent = time.monotonic()
        self.prefilled: Prefilled | None = None
        """The prefill whose keys and values it uses."""
        self.silence = Silence(work)
        self.until = until
        self.too_slow = too_slow
        self.why: str | None = None
        """Why it was given up."""
        self.is_stream = False
        """Whether the answer comes as server-sent events; known from its head on."""
        self._cause: Cause = "frozen"
        self._response: Response | None = None
        self._dialling: asyncio.Timeout | None = None

    @property
    def response(self) -> Response:
        """The answer's head; there is one once the exchange is handed out."""
        assert self._response is not None
        return self._response

    @property
    def is_sent(self) -> bool:
        """Whether its worker may have got any of the request."""
        return self._response is not None

    async def head(self, peer: Peer, request: Sequence[bytes]) -> Response:
        """Send it, and wait for the answer's head; `close` must follow.

        Raises:
            WorkerError: There is none.
        """
        connection = peer.free() or await self._dial(peer)
        self._response = response = connection.send(request)
        try:
            await response.head()
        except NoHttpError as error:
            raise self.lost("answered with something other than HTTP/1.1", "bad_answer") from error
        except OSError as error:
            raise self.lost("closed the connection before it answered", "reset") from error
        self.is_stream = response.header("content-type").partition(";")[0].strip().lower() == "text/event-stream"
        self.silence.end(begins=not self.is_stream)
        self.silence.begin()
        return response

    async def _dial(self, peer: Peer) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S) as self._dialling:
                connection = await peer.dial()
        except OSError as error:
            raise self.lost("cannot be reached", "unreachable") from error
        if self.why is not None:  # it was given up at the moment in which the connection came
            connection.abort()
            raise self.lost("cannot be reached", "unreachable")
        return connection

    def close(self) -> None:
        """Be done with the answer; one that is not whole is cut off, so that the worker aborts."""
        if self._response is not None:
            self._response.close()

    def lose(self, why: str, cause: Cause = "frozen") -> None:
        """Give it up; whoever waits for it gets an error with this reason."""
        if self.why is None:
            self.why, self._cause = why, cause
            if self._response is not None:
                self._response.close()
            elif self._dialling is not None:
                with suppress(RuntimeError):  # it is over already
                    self._dialling.reschedule(0)

    def lost(self, otherwise: str, cause: Cause) -> WorkerError:
        """The error for its end before it was whole: why it was given up, or otherwise this."""
        if self.why is not None:
            return WorkerError(self.worker, self.why, cause=self._cause)
        return WorkerError(self.worker, otherwise, cause=cause)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            WorkerError: It broke off.
        """
        silence, is_stream, unheard = self.silence, self.is_stream, 0
        try:
            while piece := await self.response.piece():
                unheard += len(piece)
                if b"\n" in piece if is_stream else unheard >= PIECE_BYTES:
                    silence.end()
                    yield piece
                    silence.begin()
                    unheard = 0
                else:
                    yield piece
        except OSError as error:
            raise self.lost("broke off its answer", "cut") from error

    async def whole(self) -> bytes:
        """The rest of the body.

        Raises:
            WorkerError: It broke off, or has no end.
        """
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > ANSWER_LIMIT:
                how = f"answered with more than {ANSWER_LIMIT / 2**20:g} MiB"
                raise WorkerError(self.worker, how, cause="bad_answer")
        return bytes(body)

    @property
    def first_decode_s(self) -> float | None:
        """Seconds from keys and values to the first token, as its worker tells them; None where it does not."""
        told = FIRST_DECODE.search(self.response.header("server-timing"))
        return float(told[1]) / 1000 if told else None
