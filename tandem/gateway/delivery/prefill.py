"""A prefill under way: a task of its own, so that the decode leg can begin while it goes on.

    request ──▶ ticket ──▶ the answer's end          an instance that gives early tickets streams its answer
       └───────────┴── end ──▶ ticket released, connection closed, which aborts a prefill that goes on

What a client that goes leaves behind is cleared up by `end`, whenever it went: a ticket that is on the wire at that
moment is waited for, because nobody else would ever know of it. Not that of another engine, which gives it only when
the prefill is done: waiting would let prefills end that are in vain.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import msgspec

from tandem.errors import RequestError
from tandem.gateway.delivery.ticket import Releases, Ticket
from tandem.gateway.delivery.worker_client import Reason, WorkerClient
from tandem.gateway.delivery.worker_stream import check_line
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.wire.exchange import Exchange, WorkerError
from tandem.gateway.wire.prefilled import Prefilled, PromptUsage
from tandem.gateway.wire.silence import Silence
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.vitals import MOST_WITHOUT_TICKET, Vitals
from tandem.protocol.answers import TICKET_RELEASED
from tandem.protocol.json_body import UNREADABLE
from tandem.protocol.sse import EventParser

LINGER_S: Final = 0.25
"""How long something on the wire is waited for after the request's end: a prefill that goes on meanwhile is in vain."""

NULL: Final = msgspec.Raw(b"null")


class PrefillChoice(msgspec.Struct, frozen=True):
    """One choice of a prefill answer."""

    finish_reason: str | None = None


class PrefillAnswer(msgspec.Struct, frozen=True):
    """What the gateway reads of a prefill answer, or of an event of it."""

    kv_transfer_params: msgspec.Raw = NULL
    choices: tuple[PrefillChoice, ...] = ()
    usage: PromptUsage | None = None
    error: Reason | None = None

    @property
    def ended(self) -> bool:
        """Whether the first token already ended the answer: vLLM then keeps nothing to hand over."""
        return any(choice.finish_reason == "stop" for choice in self.choices)


class Prefill:
    """One prefill leg, from its construction until `end`, which must be awaited.

    Args:
        vitals: Of who prefills.
        asked: The request.
        early: Whether to ask for the ticket before the prefill is done.
        reusable: Whether its ticket may be shown to a second decode instance.
        named: Whether to say what the ticket shall be called, so that it can be given back even if it never comes.
        client: To ask with.
        metrics: What it takes is counted there.
    """

    def __init__(
        self,
        vitals: Vitals,
        asked: ClientRequest,
        *,
        early: bool,
        named: bool,
        reusable: bool,
        client: WorkerClient,
        metrics: GatewayMetrics,
    ) -> None:
        self._vitals = vitals
        self._worker = vitals.worker
        self._client = client
        self._metrics = metrics
        self._name = secrets.token_hex(16) if named else None
        self._reusable = reusable
        self._ticket: Ticket | None = None
        self._fed: Exchange | None = None
        self._told = asyncio.Event()
        self._asked = asked
        self._tokens = asked.demand.prompt_tokens
        vitals.load.begin(self._tokens)  # until it is computed, or nobody wants it
        self._reading = asyncio.create_task(self._run(asked, early))
        self._reading.add_done_callback(lambda _: vitals.load.end(self._tokens))
        self.result = Prefilled()
        """What is known of it besides."""
        self.failure: Exception | None = None
        """Why there will be no keys and values, as soon as that is known."""

    async def ticket(self) -> Ticket | None:
        """The ticket, or None when there is nothing to hand over; decode then computes the prompt by itself.

        So it is when the first token ended the answer, and where an engine knows no hand-off for what was asked for: a
        vLLM gives no ticket for a beam search.

        Raises:
            VerbatimError: The worker answered 4xx; the client gets that answer.
            RequestError: 502, 503 or 504, when the worker did not do its part.
            Exception: What nobody foresaw.
        """
        await self._told.wait()
        if self.failure is not None:
            raise self.failure
        return self._ticket

    @property
    def was_given_back(self) -> bool:
        """Whether it ended because its ticket was released, as a decode instance does that fails."""
        return isinstance(self.failure, RequestError) and self.failure.code == TICKET_RELEASED

    async def told(self) -> None:
        """Wait until there is a ticket, or it is known that there will be none."""
        await self._told.wait()

    async def is_told(self, within_s: float) -> bool:
        """Wait for the same, but not for longer."""
        if not self._told.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._told.wait()
        return self._told.is_set()

    @property
    def expected_s(self) -> float:
        """How long its ticket may take, by its worker's past; 0 where it has none."""
        return self._vitals.silences.expected_s("prefill", Silence(self._tokens)) or 0.0

    @property
    def is_named(self) -> bool:
        """Whether its ticket can be given back even if it never comes."""
        return self._name is not None

    @property
    def worker(self) -> Worker:
        """Who prefills."""
        return self._worker

    @property
    def reusable(self) -> Ticket | None:
        """Its ticket, where another decode instance may be shown it."""
        return self._ticket if self._reusable and self.failure is None else None

    def feeds(self, decode: Exchange) -> None:
        """Say which exchange waits for the keys and values; it is given up when they cannot come any more."""
        self._fed = decode
        decode.source = self._worker
        if not self.over:
            decode.silence.excuse()

    @property
    def over(self) -> bool:
        """Whether the answer was read to its end."""
        return self._reading.done()

    async def end(self, releases: Releases, *, used: bool) -> None:
        """Nobody waits for the prefill any more; as far as can be helped, nothing of it stays on the worker.

        Args:
            releases: To let go of its ticket with.
            used: Whether decode answers with it.
        """
        with suppress(TimeoutError):
            if used:
                await asyncio.wait_for(asyncio.shield(self._reading), LINGER_S)
            elif self._name is None and releases.understood(self._worker):
                await asyncio.wait_for(self._told.wait(), LINGER_S)
        self._reading.cancel()
        await asyncio.wait([self._reading])
        ticket = Ticket.called(self._name, self._worker) if self._name else self._ticket
        if ticket is not None and not used:
            await releases.end(ticket, self._asked, self._fed)

    async def _run(self, asked: ClientRequest, early: bool) -> None:
        body = asked.body.prefill(early=early, ticket=self._name)
        try:
            with self._metrics.prefill_seconds.time():
                exchange = Exchange(
                    self._worker, "prefill", work=self._tokens, until=asked.until, too_slow=asked.too_slow
                )
                with asked.leg("prefill", self._worker) as headers:
                    async with self._client.post(exchange, asked.path, body, headers):
                        await self._read(exchange)
            self.result.ended = time.monotonic()
        except Exception as error:  # noqa: BLE001 - raised where the ticket is waited for, as it is
            self.failure = error
            self._starve()
        finally:
            self._told.set()
            if self._fed is not None:
                self._fed.silence.end_excuse()

    def _starve(self) -> None:
        """A pull from an instance that is frozen would hang; what gave its ticket back says by itself why it did."""
        if self._fed is not None and not self._fed.silence.has_begun and not self.was_given_back:
            self._fed.lose("got no keys and values", "starved")

    async def _read(self, exchange: Exchange) -> None:
        ended = False
        async for answer in self._answers(exchange):
            if answer.error is not None:
                raise self._client.reported(self._worker, answer.error, "failed during the prefill")
            if self._ticket is None and answer.kv_transfer_params != NULL:
                ticket = Ticket.read(answer.kv_transfer_params, self._worker)
                self._ticket = ticket.kept if self._reusable else ticket
                self._vitals.without_ticket = 0
                self._told.set()
                await asyncio.sleep(0)  # the decode leg goes first; what is left to do here can wait
            self.result.usage = answer.usage or self.result.usage
            ended |= answer.ended
        if self._ticket is None and not ended and not self._may_lack_a_ticket():
            how = "prefilled but gave no ticket; start it with role prefill"
            raise WorkerError(self._worker, how, cause="no_ticket")

    def _may_lack_a_ticket(self) -> bool:
        """Whether it is the request's doing, and not the worker's, which gives none to anybody."""
        self._vitals.without_ticket += 1
        return self._vitals.without_ticket <= MOST_WITHOUT_TICKET

    async def _answers(self, exchange: Exchange) -> AsyncIterator[PrefillAnswer]:
        """The answer, or its events; of a prefill there are few."""
        if not exchange.is_stream:
            yield self._decoded(await exchange.whole())
            return
        parser = EventParser()
        async for piece in exchange.pieces():
            for data in parser.feed(piece):
                if data != b"[DONE]":
                    yield self._decoded(data)
            check_line(exchange, parser.held)

    def _decoded(self, raw: bytes) -> PrefillAnswer:
        try:
            return msgspec.json.decode(raw, type=PrefillAnswer)
        except UNREADABLE:
            how = "answered the prefill with something other than OpenAI's JSON"
            raise WorkerError(self._worker, how, cause="bad_answer") from None
