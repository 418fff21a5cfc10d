"""The ways to an answer: one leg to an instance that does both, or prefill and decode with the ticket between them.

Cancelling a leg closes its connection, which is how an instance learns that nobody waits any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from tandem.errors import RequestError
from tandem.gateway.delivery.prefill import Prefill
from tandem.gateway.delivery.ticket import Releases
from tandem.gateway.delivery.worker_client import WorkerClient
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.wire.exchange import Exchange, Stage, WorkerError
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.budget import Retry, RetryBudget
from tandem.gateway.workers.patience import Patience
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.route import Route

TOKEN_WORK: Final = 100
"""A token of an answer takes about as long as so many of a prompt."""
UNKNOWN_TOKENS: Final = 8192
"""Of an answer whose length nobody has limited."""


@dataclass
class Kept:
    """What one try leaves to the next one of the same request."""

    leg: Prefill | None = None
    """A prefill whose ticket its decode instance did not get to use, and another one may."""


class Legs:
    """Walks the legs of requests, and clears up behind those that ended otherwise, in tasks that outlive them."""

    def __init__(
        self,
        *,
        pool: Pool,
        client: WorkerClient,
        releases: Releases,
        budget: RetryBudget,
        patience: Patience,
        metrics: GatewayMetrics,
    ) -> None:
        self._pool = pool
        self._client = client
        self._releases = releases
        self._budget = budget
        self._patience = patience
        self._metrics = metrics
        self._ends: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def answer(self, route: Route, asked: ClientRequest, kept: Kept | None = None) -> AsyncIterator[Exchange]:
        """Have a request answered; yields the answer once it has begun with status 200, its body unread.

        Args:
            route: By whom.
            asked: The request.
            kept: What is left of the try before, and will be of this one; `drop` it in the end. None keeps nothing.

        Raises:
            VerbatimError: A worker answered 4xx; the client gets that answer.
            WorkerError: A worker did not do its part.
            RequestError: The request cannot be served so, or its deadline is over.
        """
        way = self._apart(route, asked, kept) if route.kind == "apart" else self._alone(route, asked)
        try:
            with asked.in_time():
                async with way as exchange:
                    yield exchange
        except WorkerError as error:
            # Here, where it is known who is to blame, and not at the exchange: a pull fails on both sides.
            asked.record.cause = error.cause
            self._blame(error)
            raise

    @asynccontextmanager
    async def _alone(self, route: Route, asked: ClientRequest) -> AsyncIterator[Exchange]:
        body = asked.body.decode_leg(None, asked.left_s())
        with asked.leg("decode", route.decode) as headers:
            async with self._client.post(_exchange(route, asked), asked.path, body, headers) as exchange:
                yield exchange

    @asynccontextmanager
    async def _apart(self, route: Route, asked: ClientRequest, kept: Kept | None) -> AsyncIterator[Exchange]:
        """A ticket that `decode` did not get to use, because a leg failed or the client went, is given back."""
        legs = [leg := self._leg(route, asked, kept)]
        used, is_kept, exchange = False, False, None
        try:
            leg = await self._first_told(legs, route, asked)
            ticket = await leg.ticket()
            body = asked.body.decode_leg(ticket.raw if ticket else None, asked.left_s())
            exchange = _exchange(route, asked)  # only now: from here on decode is waited for
            exchange.prefilled = leg.result
            leg.feeds(exchange)
            with asked.leg("decode", route.decode) as headers:
                async with self._client.post(exchange, asked.path, body, headers):
                    used = True
                    yield exchange
        except RequestError as error:
            has_told = used and exchange is not None and exchange.silence.has_begun  # what it refuses is no answer
            used = False  # perhaps it was: giving back what was pulled does nothing
            # A prefill that fails under way fails the pull as well; the client is told of the cause. That the ticket
            # was given back is none: decode does so when it fails.
            cause = error if leg.was_given_back else leg.failure or error
            is_decodes = isinstance(cause, WorkerError) and cause.worker is route.decode
            if kept is not None and is_decodes and leg.reusable and not has_told:
                kept.leg, is_kept = leg, True
            raise cause from None
        finally:
            for one in legs:
                if one is not leg or not (is_kept or (used and leg.over)):
                    self._begin_end(one, used=used and one is leg)

    def _leg(self, route: Route, asked: ClientRequest, kept: Kept | None) -> Prefill:
        """The prefill that was kept, or a new one."""
        if kept is not None and kept.leg is not None:
            leg = kept.leg
            if leg.worker is route.prefill:
                kept.leg = None
                return leg
            self.drop(kept)
        return self._begin(route.prefill, route.decode, asked)

    def _begin(self, prefill: Worker, decode: Worker, asked: ClientRequest) -> Prefill:
        leg = Prefill(
            self._pool.vitals(prefill),
            asked,
            early=self._pool.can("early_ticket", prefill, decode),
            named=self._pool.can("named_ticket", prefill),
            reusable=self._pool.can("ticket_reuse", prefill, decode),
            client=self._client,
            metrics=self._metrics,
        )
        asked.prefills.append(leg.result)
        return leg

    async def _first_told(self, legs: list[Prefill], route: Route, asked: ClientRequest) -> Prefill:
        """The leg; or, where it is late, the first with a ticket of it and another one that is asked beside it.

        Only where the slower one can be released: it would compute in vain, and hold what nobody fetches.
        """
        [leg] = legs
        if (room := await self._room_beside(leg)) is None:
            return leg
        try:
            worker = self._pool.choose("prefill", asked.demand, route.workers, partner=route.decode)
            if worker is None or not self._pool.can("named_ticket", worker):
                return leg
            self._pool.sent(asked.demand, worker)
            legs.append(self._begin(worker, route.decode, asked))
            first, other = await _first_told(*legs)
        finally:
            room.end()
        self._metrics.hedged(leg.worker, won=first is not leg)
        if isinstance(other.failure, WorkerError):
            self._blame(other.failure)
        elif other is leg:  # it may be well but for this one; who never gives a ticket has lost three times in a row
            self._pool.failed(leg.worker)
        legs.remove(other)
        self._begin_end(other, used=False)
        return first

    async def _room_beside(self, leg: Prefill) -> Retry | None:
        """Room for another one beside a leg that is late; None where it is not, or where it could not be released."""
        while leg.is_named and not await leg.is_told(self._patience.hedge_s(leg.expected_s)):
            self._pool.vitals(leg.worker).is_suspect = True
            if (room := self._budget.hedge()) is not None:
                return room
        return None

    def _blame(self, error: WorkerError) -> None:
        self._metrics.failed(error.worker, error.cause)
        self._pool.failed(error.worker)

    async def confirm(self, kept: Kept) -> None:
        """Ask whether what was kept is still good; if not, drop it."""
        ticket = kept.leg and kept.leg.reusable
        if kept.leg is not None and not (ticket and await self._releases.renew(ticket)):
            self.drop(kept)

    def drop(self, kept: Kept) -> None:
        """Nobody will use what was kept."""
        if kept.leg is not None:
            self._begin_end(kept.leg, used=False)
            kept.leg = None

    async def finish(self) -> None:
        """Wait until everything is cleared up."""
        await asyncio.gather(*self._ends)

    def _begin_end(self, leg: Prefill, *, used: bool) -> None:
        task = asyncio.create_task(leg.end(self._releases, used=used))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)


async def _first_told(one: Prefill, other: Prefill) -> tuple[Prefill, Prefill]:
    """The first of two that does its part, and the other one; where neither does, as they come."""
    waits = {asyncio.create_task(leg.told()): leg for leg in (one, other)}
    try:
        pending = set(waits)
        while pending:
            told, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for leg in (waits[wait] for wait in told):
                if not isinstance(leg.failure, WorkerError):
                    return (leg, other) if leg is one else (leg, one)
    finally:
        for wait in waits:
            wait.cancel()
    return one, other


def _exchange(route: Route, asked: ClientRequest) -> Exchange:
    """The one that brings the answer; one that is not streamed begins when all of it is there."""
    work: float = asked.demand.prompt_tokens
    if not asked.body.streams:
        work += TOKEN_WORK * (asked.body.max_answer or UNKNOWN_TOKENS)
    stage: Stage = "stream" if asked.body.streams else "whole"
    return Exchange(route.decode, stage, work=work, until=asked.until, too_slow=asked.too_slow)
