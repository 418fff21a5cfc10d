"""What becomes of one request: how it ends, who serves it, and where its time goes.

Everybody on its way writes down what they know; metrics, the access log and traces read it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from tandem.errors import RequestError
from tandem.gateway.request.tally import Tally
from tandem.gateway.wire.exchange import Cause, Exchange
from tandem.gateway.wire.worker import Worker

Outcome = Literal["ok", "refused", "failed", "broken", "aborted"]
"""Answered; refused with 4xx; failed with 5xx; a stream that broke off; the client went away."""
CLIENT_LEFT: Final = 499
"""The status of a request whose client left, as nginx has it."""
Part = Literal["queue", "retry", "prefill", "transfer", "first_decode", "transfer_first_decode", "alone"]
"""Of the time to the first token."""


class Spans(Protocol):
    """The spans of one request."""

    def leg(self, name: str, worker: Worker, headers: Mapping[str, str]) -> AbstractContextManager[Mapping[str, str]]:
        """A leg runs in the block; yields the headers for its worker."""

    def end(self) -> None:
        """The request is over, and its record whole."""


@dataclass(kw_only=True, slots=True)
class Record:
    """Of one request; times are seconds of the monotonic clock."""

    id: str
    path: str
    """The endpoint that its client called."""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    outcome: Outcome = "ok"
    status: int = 200
    """Of its answer; 499 where its client left before there was one."""
    is_stopped: bool = False
    """Whether the gateway ends it, because it ends itself."""
    trace: Spans | None = None
    """Where somebody wants them."""
    key: str | None = None
    """The name of its key."""
    served_by: Mapping[str, str] = field(default_factory=dict)
    """The headers that say who began the answer, and how they share the work."""
    queue_s: float = 0.0
    """How long it waited for a turn: to be let in, and for room for another try."""
    tries: int = 0
    continuations: int = 0
    cause: Cause | None = None
    """What the last worker that failed it did."""
    begun: float | None = None
    """When the first bytes of a stream had come."""
    parts: dict[Part, float] = field(default_factory=dict)
    """Where the time until then went, in seconds; empty for several choices, which begin each by itself."""
    events: int = 0
    """Of a stream, those that bring text."""
    prompt_tokens: int | None = None
    """As far as anybody has told; of several choices, all together."""
    cached_tokens: int | None = None
    answer_tokens: int | None = None
    longest_gap_s: float = 0.0
    """The longest wait of a stream's client between two pieces, its own slowness apart."""
    _heard: float | None = None
    """When the last worker that began to answer was last heard."""

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Turn a cancellation in the block into a refusal, where it is the gateway that ends.

        Raises:
            RequestError: 503, it does.
        """
        try:
            yield
        except asyncio.CancelledError:
            if not self.is_stopped:
                raise
            raise RequestError("the gateway is stopping; send it again", status=503, code="stopping") from None

    @property
    def ttft_s(self) -> float | None:
        """From its arrival to its first bytes; None where there were none, or it was no stream."""
        return None if self.begun is None else self.begun - self.began

    @property
    def mean_gap_s(self) -> float | None:
        """Seconds from event to event of a stream that is whole; None where there are not two."""
        if self.begun is None or self.ended is None or self.events < 2 or self.outcome != "ok":
            return None
        return (self.ended - self.begun) / (self.events - 1)

    @property
    def tokens(self) -> list[tuple[str, int]]:
        """Of each kind, where anybody has told how many."""
        told = (("prompt", self.prompt_tokens), ("cached", self.cached_tokens), ("answer", self.answer_tokens))
        return [(kind, count) for kind, count in told if count is not None]

    @contextmanager
    def queued(self) -> Iterator[None]:
        """It waits for a turn while the block runs."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.queue_s += time.monotonic() - began

    def first_bytes(self, exchange: Exchange | None) -> None:
        """Note the first bytes of a stream, and which exchange brought them, if it was one."""
        self.begun = time.monotonic()
        if exchange is not None:
            self.parts = dict(self._parts(exchange, self.begun))

    def _parts(self, exchange: Exchange, now: float) -> Iterator[tuple[Part, float]]:
        prefilled = exchange.prefilled
        if self.queue_s:
            yield "queue", self.queue_s
        if self.tries > 1:
            yield "retry", (prefilled or exchange).sent - self.began - self.queue_s
        if prefilled is None:
            yield "alone", now - exchange.sent
            return
        ended = now if prefilled.ended is None else prefilled.ended
        yield "prefill", ended - prefilled.sent
        left = now - max(ended, exchange.sent)
        if (decode := exchange.first_decode_s) is None:
            yield "transfer_first_decode", left
        else:
            yield "transfer", left - min(decode, left)
            yield "first_decode", min(decode, left)

    def count(self, tally: Tally, *, events: int = 0) -> None:
        """Note what an answer for one choice, or a part of it, has come to."""
        self.events += events
        self.prompt_tokens = _sum(self.prompt_tokens, tally.prompt_tokens)
        self.cached_tokens = _sum(self.cached_tokens, tally.cached_tokens)
        self.answer_tokens = _sum(self.answer_tokens, tally.answer_tokens)

    def heard(self, exchange: Exchange) -> None:
        """Note the waits for an exchange that is over."""
        silence = exchange.silence
        gap = silence.longest_s
        if self.continuations and self._heard is not None and silence.begun is not None:
            gap = max(gap, silence.begun - self._heard)
        self.longest_gap_s = max(self.longest_gap_s, gap)
        if silence.begun is not None:
            self._heard = silence.since


def _sum(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)
