"""One HTTP exchange with a worker: what was asked, when it last said something, and how it is given up from outside.

Whoever reads an answer waits for its bytes and for nothing else. That a worker is frozen is noticed elsewhere
(`stalls`), and `lose` then ends the wait, in whatever stage it is.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, Literal

import aiohttp

from tandem.errors import RequestError
from tandem.gateway.prefilled import Prefilled
from tandem.gateway.silence import PIECE_BYTES, Silence
from tandem.gateway.worker import Worker

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
]
"""What a worker did instead of its part: few, so that they can be counted."""

TRANSFER: Final = re.compile(r"\btransfer;dur=(\d{1,12}(?:\.\d{1,6})?)(?=[,;\s]|$)")
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
        self.sent = time.monotonic()
        self.prefilled: Prefilled | None = None
        """The prefill whose keys and values it uses."""
        self.silence = Silence(work)
        self.until = until
        self.too_slow = too_slow
        self.why: str | None = None
        """Why it was given up."""
        self._cause: Cause = "frozen"
        self._response: aiohttp.ClientResponse | None = None
        self._connecting = asyncio.timeout(None)

    @property
    def response(self) -> aiohttp.ClientResponse:
        """The answer's head; there is one once the exchange is handed out."""
        assert self._response is not None
        return self._response

    @property
    def is_stream(self) -> bool:
        """Whether the answer comes as server-sent events."""
        return self.response.content_type == "text/event-stream"

    async def head(self, request: aiohttp.client._RequestContextManager) -> aiohttp.ClientResponse:
        """Wait for the answer's head.

        Raises:
            TimeoutError: It was given up, or the connection took too long.
            aiohttp.ClientError: There is none.
        """
        try:
            async with self._connecting:
                self._response = await request
        except TimeoutError:
            if self._response is not None:  # it came at the moment in which it was given up
                self._response.close()
            raise
        self.silence.end(begins=not self.is_stream)
        self.silence.begin()
        return self._response

    def lose(self, why: str, cause: Cause = "frozen") -> None:
        """Give it up; whoever waits for it gets an error with this reason."""
        if self.why is None:
            self.why, self._cause = why, cause
            if self._response is not None:
                self._response.close()
            else:
                with suppress(RuntimeError):  # it is over already
                    self._connecting.reschedule(0)

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
            async for piece in self.response.content.iter_any():
                unheard += len(piece)
                if b"\n" in piece if is_stream else unheard >= PIECE_BYTES:
                    silence.end()
                    yield piece
                    silence.begin()
                    unheard = 0
                else:
                    yield piece
        except (aiohttp.ClientError, OSError) as error:
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
    def transfer_s(self) -> float | None:
        """Seconds that its worker says it has pulled keys and values for; None where it says nothing."""
        told = TRANSFER.search(self.response.headers.get("Server-Timing", ""))
        return float(told[1]) / 1000 if told else None
