"""One answer, whoever gives it: a worker that fails, dies or freezes is replaced, and the client does not see it.

Before anything was sent, another worker begins anew. In the middle of a stream, another one goes on from the tokens
that the client has: no token is doubled and none is missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from tandem.gateway.admission.admission import Admission, Place
from tandem.gateway.delivery.bodies import Bodies
from tandem.gateway.delivery.continuation import Continuation, Usage
from tandem.gateway.delivery.exactness import cannot
from tandem.gateway.delivery.legs import Kept, Legs
from tandem.gateway.delivery.spelling import find_silent_tokens
from tandem.gateway.delivery.tries import Tries
from tandem.gateway.delivery.worker_answer import told_answer
from tandem.gateway.delivery.worker_client import WorkerClient
from tandem.gateway.delivery.worker_stream import told_events, told_lines
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.request.journal import Journal, is_finish
from tandem.gateway.request.progress import Progress
from tandem.gateway.request.tally import Tally
from tandem.gateway.wire.exchange import Exchange, WorkerError
from tandem.gateway.workers.budget import RetryBudget
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.route import Route
from tandem.protocol import sse
from tandem.protocol.json_body import UNREADABLE

log = logging.getLogger(__name__)


class Courier:
    """What deliveries are made with; one for all of them."""

    def __init__(
        self,
        *,
        pool: Pool,
        admission: Admission,
        legs: Legs,
        client: WorkerClient,
        budget: RetryBudget,
        metrics: GatewayMetrics,
    ) -> None:
        self.pool = pool
        self.admission = admission
        self.legs = legs
        self.client = client
        self.budget = budget
        self.metrics = metrics
        self.journals: set[Journal] = set()
        """Of the streams that are open."""
        self.reasons = False
        """Whether an instance was seen to tell reasoning apart, without being asked to."""

    def deliver(self, asked: ClientRequest, choice: int = 0) -> Delivery:
        """Begin to answer a request for one choice."""
        return Delivery(self, asked, choice)


class Delivery:
    """The answer to one request for one choice, streamed or whole.

    Args:
        courier: What it is made with.
        asked: The request; its `n` is 1.
        choice: Which of several answers to the same prompt it is: that decides its random numbers.
    """

    def __init__(self, courier: Courier, asked: ClientRequest, choice: int = 0) -> None:
        self._courier = courier
        self._asked = asked
        self._bodies = Bodies(asked.body, choice, reasons=courier.reasons)
        self._tally = Tally(asked.prefills)
        self._tries = Tries(courier.pool, courier.budget, courier.metrics)
        self._was_let_in = False
        self._kept = Kept()
        self.headers: dict[str, str] = {}
        """What the client learns about who serves it: the first who answered, or else the last who was tried."""
        self.exchange: Exchange | None = None
        """The last one that has begun to answer."""

    async def whole(self) -> bytes:
        """The whole answer.

        Raises:
            VerbatimError: A worker answered 4xx; the client gets that answer.
            RequestError: Nobody could answer, or not in time.
        """
        try:
            while True:
                try:
                    return await self._whole_once()
                except WorkerError as error:
                    await self._before_next(error)
        finally:
            self._asked.record.count(self._tally)
            self._end()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The stream's bytes, whole lines at a time; raises like `whole`, before or after the first of them."""
        journal = Journal(wants_ids=self._asked.body.wants_ids)
        self._courier.journals.add(journal)
        try:
            while True:
                try:
                    async with aclosing(self._rest(journal) if has_begun(journal) else self._begin(journal)) as pieces:
                        async for piece in pieces:
                            self._tries.succeed()
                            yield piece
                except WorkerError as error:
                    await self._before_next(error)
                else:
                    return
        finally:
            self._courier.journals.discard(journal)
            if "messages" in self._asked.body.fields:
                self._courier.reasons = self._courier.reasons or journal.tells_reasoning
            self._asked.record.count(self._tally, events=self._tellings(journal))
            self._end()

    async def _whole_once(self) -> bytes:
        with await self._place() as place:
            self.headers = place.route.headers
            async with self._answered(place, self._first_body(place.route)) as exchange:
                self.headers = place.route.with_prefill(exchange.source).headers
                return await told_answer(exchange, self._tally)

    async def _begin(self, journal: Journal) -> AsyncGenerator[bytes, None]:
        """The stream from its start."""
        with await self._place() as place:
            self.headers = place.route.headers
            async with self._answered(place, self._first_body(place.route)) as exchange:
                self.headers = place.route.with_prefill(exchange.source).headers
                last, counted = b"", self._asked.body.wants_usage
                try:
                    async for lines in told_lines(exchange, self._courier.client):
                        if lines.endswith(sse.DONE) and not (journal.is_finished or is_finish(lines)):
                            raise exchange.lost("ended its stream and had not ended its answer", "cut")
                        last, seen = lines, journal.pass_on(lines)
                        yield self._tally.lines(seen, alone=exchange.prefilled is None) if counted else seen
                except WorkerError:
                    if last and not last.endswith((b"\n\n", b"\r\n\r\n")):  # it lacks only the line that ends it
                        yield b"\n"
                    raise

    async def _rest(self, journal: Journal) -> AsyncGenerator[bytes, None]:
        """The stream from where it broke off."""
        progress = journal.progress
        if progress.finish_reason is None or (self._owes_usage(progress) and not progress.is_counted):
            with await self._place() as place:
                way = await self._continuation(place.route, progress)
                self._courier.metrics.continued(way.name)
                self._asked.record.continuations += 1
                async with self._answered(place, way.body) as exchange:
                    async for event in told_events(exchange, self._courier.client):
                        self._tries.succeed()  # much may come again before anything is news
                        if (news := way.news(event | _head(progress))) is not None:
                            if news.get("usage"):
                                news["usage"] = self._tally.corrected(news["usage"], alone=False)
                            yield sse.event(journal.seen(news))
                    if progress.finish_reason is None:
                        raise exchange.lost("ended its stream and had not ended its answer", "cut")
            way.end()
        elif self._owes_usage(progress):
            yield sse.event(self._last_event(progress))
        yield sse.DONE

    def _owes_usage(self, progress: Progress) -> bool:
        return self._asked.body.wants_usage and not progress.has_usage

    def _last_event(self, progress: Progress) -> dict[str, Any]:
        kind = "chat.completion.chunk" if "messages" in self._asked.body.fields else "text_completion"
        usage = self._tally.corrected(Usage(self._asked.body, progress).counted({}), alone=False)
        return {"object": kind, "choices": [], "usage": usage} | _head(progress)

    async def _continuation(self, route: Route, progress: Progress) -> Continuation:
        native = self._is_native(route)
        if not (native or self._bodies.is_repeatable):
            await find_silent_tokens(progress, route.decode, self._asked, self._courier.client)
        return self._bodies.rest(progress, native=native)

    def _first_body(self, route: Route) -> ClientBody:
        return self._bodies.first(native=self._is_native(route))

    def _is_native(self, route: Route) -> bool:
        """Whether the workers are instances of ours."""
        return self._courier.pool.can("resume", *route.workers)

    async def _place(self) -> Place:
        """Room for the next try; it may have to be waited for, but not once this has been let in."""
        place = await self._courier.admission.place(self._asked, self._next_route, was_let_in=self._was_let_in)
        self._was_let_in = True
        return place

    def _next_route(self, with_room: bool) -> Route:
        pool = self._courier.pool
        pool.require_open()
        prefilled = self._kept.leg.worker if self._kept.leg else None
        route = Route.plan(pool, self._asked.demand, self._tries.failed, with_room=with_room, prefilled=prefilled)
        if route is None:
            raise self._tries.in_vain
        return route

    @asynccontextmanager
    async def _answered(self, place: Place, body: ClientBody) -> AsyncIterator[Exchange]:
        """One try."""
        self._courier.metrics.routed(place.route.kind)
        self._asked.record.tries += 1
        if place.reservation is not None:
            body = body.with_fields(reservation=place.reservation)
        async with self._courier.legs.answer(place.route, self._asked.with_body(body), self._kept) as exchange:
            self.exchange = exchange
            try:
                yield exchange
            finally:
                self._asked.record.heard(exchange)

    async def _before_next(self, error: WorkerError) -> None:
        """Get ready for another try: who failed is out for this round.

        Raises:
            RequestError: There has been enough of it, or the deadline is over.
        """
        self._tries.failure(error)
        if error.cause == "silent":
            self._asked = replace(self._asked, too_slow=self._asked.too_slow + 1)
        log.info("%s: %s; it goes on elsewhere", self._asked.record.id, error)
        try:
            async with asyncio.timeout(self._asked.left_s()):
                await self._courier.legs.confirm(self._kept)
                await self._tries.next(self._asked.record)
        except TimeoutError:
            raise self._asked.late() from None

    def _tellings(self, journal: Journal) -> int:
        """Events that bring text: the role of a chat and the counts of tokens have one of their own."""
        body = self._asked.body
        return max(0, journal.events - ("messages" in body.fields) - body.wants_usage)

    def _end(self) -> None:
        self._courier.legs.drop(self._kept)
        self._tries.succeed()


def has_begun(journal: Journal) -> bool:
    """Whether a stream has to go on, and not to begin, because its client has a part of the answer.

    Raises:
        RequestError: The client has something of which nobody knows how it goes on.
    """
    try:
        progress = journal.progress
    except UNREADABLE:
        raise cannot("it was something other than OpenAI's JSON") from None
    if progress.events and not progress.head.id:
        raise cannot("it has no id")
    return bool(progress.events)


def _head(progress: Progress) -> dict[str, Any]:
    """What all events of an answer have in common."""
    head = progress.head
    return {"id": head.id, "created": head.created, "model": head.model}
