"""One client request on its way through the gateway: its body, its identity, and the headers both legs carry."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from tandem.errors import RequestError
from tandem.gateway.request.body import DEADLINE, ClientBody
from tandem.gateway.request.demand import Demand
from tandem.gateway.request.record import Record
from tandem.gateway.wire.prefilled import Prefilled
from tandem.gateway.wire.worker import Worker
from tandem.protocol.answers import DEADLINE_EXCEEDED

AUTHORIZATION: Final = "Authorization"
PASSED_ON: Final = (AUTHORIZATION, "traceparent", "tracestate")
"""Of a client's headers; what else an engine obeys, such as vLLM's X-data-parallel-rank, is not for clients to say."""


@dataclass(frozen=True, kw_only=True)
class ClientRequest:
    """What every leg of one request needs to know."""

    record: Record
    """What becomes of it."""
    path: str
    """The endpoint that both legs call."""
    body: ClientBody
    headers: Mapping[str, str]
    """Sent with both legs."""
    too_slow: int = 0
    """How many workers were given up as too slow for it."""
    prefills: list[Prefilled] = field(default_factory=list)
    """Those that were begun for it, of all tries."""

    @classmethod
    def begin(cls, record: Record, path: str, raw: bytes, headers: Mapping[str, str]) -> ClientRequest:
        """Set out with a client's body, and those of its headers that are passed on.

        Raises:
            RequestError: 400, when the body is not a JSON object.
        """
        own = {"X-Request-Id": record.id, "Content-Type": "application/json"}
        return cls(record=record, path=path, body=ClientBody.decode(raw), headers={**headers, **own})

    @cached_property
    def demand(self) -> Demand:
        """How much it asks for."""
        return Demand(self.body)

    def leg(self, name: str, worker: Worker) -> AbstractContextManager[Mapping[str, str]]:
        """A leg to a worker runs in the block; yields the headers to send."""
        trace = self.record.trace
        return nullcontext(self.headers) if trace is None else trace.leg(name, worker, self.headers)

    def with_body(self, body: ClientBody) -> ClientRequest:
        """The same request with another body."""
        return replace(self, body=body)

    def by_itself(self) -> ClientRequest:
        """The same request, with prefills of its own."""
        return replace(self, prefills=[])

    @cached_property
    def until(self) -> float | None:
        """When the client's deadline is over, by `time.monotonic`; None if it set none."""
        allowed = self.body.deadline_s
        return None if allowed is None else self.record.began + allowed

    def left_s(self) -> float | None:
        """Seconds left of the client's deadline; None if it set none.

        Raises:
            RequestError: 504, when nothing is left.
        """
        if self.until is None:
            return None
        if (left := self.until - time.monotonic()) > 0:
            return left
        raise self.late()

    def late(self) -> RequestError:
        """The refusal for a request whose deadline is over."""
        message = f"{DEADLINE}: the {self.body.deadline_s:g} seconds are over; allow the request more time"
        return RequestError(message, status=504, code=DEADLINE_EXCEEDED, param=DEADLINE)

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Failures in this block are late answers once the deadline is over: that is why an instance gave up.

        An instance that says so itself is believed.

        Raises:
            RequestError: What was raised, or 504.
        """
        try:
            yield
        except RequestError as error:
            if error.status >= 500 and error.code != DEADLINE_EXCEEDED:
                self.left_s()
            raise
