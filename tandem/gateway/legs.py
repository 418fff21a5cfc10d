"""The two legs of a request served apart: prefill, which yields a ticket, and decode, which takes it.

Cancelling a leg closes its connection, which is how an instance learns that nobody waits any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from tandem.gateway.client_request import ClientRequest
from tandem.gateway.metrics import GatewayMetrics
from tandem.gateway.pool import Worker
from tandem.gateway.ticket import Releases, Ticket
from tandem.gateway.worker_client import Response, WorkerClient


class PrefillChoice(msgspec.Struct, frozen=True):
    """The one choice of a prefill answer."""

    finish_reason: str | None = None


class PrefillAnswer(msgspec.Struct, frozen=True):
    """What the gateway reads of a prefill answer."""

    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")
    choices: tuple[PrefillChoice, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the first token already ended the answer: vLLM then keeps nothing to hand over."""
        return any(choice.finish_reason == "stop" for choice in self.choices)


class Legs:
    """Walks single legs; holds no state about requests."""

    def __init__(self, client: WorkerClient, releases: Releases, metrics: GatewayMetrics) -> None:
        self._client = client
        self._releases = releases
        self._metrics = metrics

    async def prefill(self, worker: Worker, asked: ClientRequest) -> Ticket | None:
        """Have `worker` compute the prompt's keys and values.

        Returns:
            The ticket, or None when the first token ended the answer and the worker kept nothing; decode then
            computes the prompt by itself.

        Raises:
            VerbatimError: The worker answered 4xx; the client gets that answer.
            RequestError: 502 or 503, when the worker did not do its part.
        """
        with self._metrics.prefill_seconds.time():
            async with self._client.post(worker, asked.path, asked.body.prefill(), asked.headers) as response:
                raw = await self._client.read(worker, response)
        try:
            answer = msgspec.json.decode(raw, type=PrefillAnswer)
        except msgspec.DecodeError:
            raise self._client.failed(worker, "answered the prefill with something other than OpenAI's JSON") from None
        if bytes(answer.kv_transfer_params) != b"null":
            return Ticket(holder=worker, raw=answer.kv_transfer_params.copy())
        if not answer.ended:
            raise self._client.failed(worker, "prefilled but gave no ticket; start it with role prefill")
        return None

    @asynccontextmanager
    async def decode(self, worker: Worker, asked: ClientRequest, ticket: Ticket | None) -> AsyncIterator[Response]:
        """Have `worker` answer with the ticket's keys and values; yields its answer once it has begun with status 200.

        A ticket that the worker did not get to take, because it failed, refused or the client went, is released.

        Raises:
            VerbatimError: The worker answered 4xx; the client gets that answer.
            RequestError: 502 or 503, when the worker did not do its part.
        """
        body = asked.body.decode_leg(ticket.raw if ticket else None)
        taken = False
        try:
            async with self._client.post(worker, asked.path, body, asked.headers) as response:
                taken = True
                yield response
        finally:
            if ticket is not None and not taken:
                self._releases.begin(ticket)

    def both(self, worker: Worker, asked: ClientRequest) -> AbstractAsyncContextManager[Response]:
        """Have a worker that does both answer; yields and raises like `decode`."""
        return self._client.post(worker, asked.path, asked.body.whole(), asked.headers)
