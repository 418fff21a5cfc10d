"""The ways to an answer: one leg to an instance that does both, or prefill and decode with the ticket between them.

Cancelling a leg closes its connection, which is how an instance learns that nobody waits any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tandem.errors import RequestError
from tandem.gateway.client_request import ClientRequest
from tandem.gateway.exchange import Exchange, Stage, WorkerError
from tandem.gateway.metrics import GatewayMetrics
from tandem.gateway.pool import Pool
from tandem.gateway.prefill import Prefill
from tandem.gateway.route import Route
from tandem.gateway.ticket import Releases
from tandem.gateway.worker_client import WorkerClient
from tandem.protocol.answers import TICKET_RELEASED

TOKEN_WORK: Final = 100
"""A token of an answer takes about as long as so many of a prompt."""
UNKNOWN_TOKENS: Final = 8192
"""Of an answer whose length nobody has limited."""


class Legs:
    """Walks the legs of requests, and clears up behind those that ended otherwise, in tasks that outlive them."""

    def __init__(self, pool: Pool, client: WorkerClient, releases: Releases, metrics: GatewayMetrics) -> None:
        self._pool = pool
        self._client = client
        self._releases = releases
        self._metrics = metrics
        self._ends: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def answer(self, route: Route, asked: ClientRequest) -> AsyncIterator[Exchange]:
        """Have a request answered; yields the answer once it has begun with status 200, its body unread.

        Raises:
            VerbatimError: A worker answered 4xx; the client gets that answer.
            WorkerError: A worker did not do its part.
            RequestError: The request cannot be served so, or its deadline is over.
        """
        way = self._apart(route, asked) if route.kind == "apart" else self._alone(route, asked)
        try:
            with asked.in_time():
                async with way as exchange:
                    yield exchange
        except WorkerError as error:
            # Here, where it is known who is to blame, and not at the exchange: a pull fails on both sides.
            asked.record.cause = error.cause
            self._metrics.failed(error.worker, error.cause)
            self._pool.failed(error.worker)
            raise

    @asynccontextmanager
    async def _alone(self, route: Route, asked: ClientRequest) -> AsyncIterator[Exchange]:
        body = asked.body.decode_leg(None, asked.left_s())
        with asked.leg("decode", route.decode) as headers:
            async with self._client.post(_exchange(route, asked), asked.path, body, headers) as exchange:
                yield exchange

    @asynccontextmanager
    async def _apart(self, route: Route, asked: ClientRequest) -> AsyncIterator[Exchange]:
        """A ticket that `decode` did not get to use, because a leg failed or the client went, is given back."""
        prefill, decode = route.prefill, route.decode
        early = self._pool.can("early_ticket", prefill, decode)
        vitals, named = self._pool.vitals(prefill), self._pool.can("named_ticket", prefill)
        leg = Prefill(vitals, asked, early=early, named=named, client=self._client, metrics=self._metrics)
        asked.prefills.append(leg.told)
        used = False
        try:
            ticket = await leg.ticket()
            body = asked.body.decode_leg(ticket.raw if ticket else None, asked.left_s())
            exchange = _exchange(route, asked)
            exchange.prefilled = leg.told
            leg.feeds(exchange)
            with asked.leg("decode", decode) as headers:
                async with self._client.post(exchange, asked.path, body, headers):
                    used = True
                    yield exchange
        except RequestError as error:
            used = False  # perhaps it was: giving back what was pulled does nothing
            # A prefill that fails under way fails the pull as well; the client is told of the cause. That the ticket
            # was given back is none: decode does so when it fails.
            given_back = leg.failure is not None and leg.failure.code == TICKET_RELEASED
            raise error if given_back else leg.failure or error from None
        finally:
            if not (used and leg.over):
                self._begin_end(leg, used=used)

    async def finish(self) -> None:
        """Wait until everything is cleared up."""
        await asyncio.gather(*self._ends)

    def _begin_end(self, leg: Prefill, *, used: bool) -> None:
        task = asyncio.create_task(leg.end(self._releases, used=used))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)


def _exchange(route: Route, asked: ClientRequest) -> Exchange:
    """The one that brings the answer; one that is not streamed begins when all of it is there."""
    work: float = asked.demand.prompt_tokens
    if not asked.body.streams:
        work += TOKEN_WORK * (asked.body.max_answer or UNKNOWN_TOKENS)
    stage: Stage = "stream" if asked.body.streams else "whole"
    return Exchange(route.decode, stage, work=work, until=asked.until, too_slow=asked.too_slow)
