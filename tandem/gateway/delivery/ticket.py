"""The ticket between the two legs: who holds a request's keys and values, and how to let go of them unused.

Telling the holder is an extension of tandem's own engine. vLLM has no word for it: there a decode instance that has
never seen the ticket is asked for one token with it, which nobody reads; when it has pulled the blocks, their holder
frees them. One that may have seen the ticket is not asked, because blocks that are pulled twice may be somebody else's
by then: then, and where too much of this is under way, the holder's lease ends it.

Source: Dynamo's pull request 13855.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from tandem.errors import RequestError
from tandem.gateway.delivery.worker_client import WorkerClient
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.request.internal import Fields
from tandem.gateway.wire.exchange import Exchange, WorkerError
from tandem.gateway.wire.peer import Peers
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.pool import Pool
from tandem.protocol.json_body import UNREADABLE

RELEASE_TIMEOUT_S: Final = 2.0
USE_UP_S: Final = 10.0
"""With the wait for a turn: far less than the 30 s of vLLM's lease, after which a ticket must not be shown."""
MOST_USING_UP: Final = 8
"""At a time."""

log = logging.getLogger(__name__)


class Named(msgspec.Struct, frozen=True):
    """What is read of a ticket."""

    remote_request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A prefill instance's promise to keep one request's blocks until they are pulled."""

    holder: Worker
    raw: msgspec.Raw
    """`kv_transfer_params` of its answer, passed on byte for byte."""

    @classmethod
    def read(cls, raw: msgspec.Raw, holder: Worker) -> Ticket:
        """The one that an answer holds.

        Raises:
            WorkerError: It is no JSON object, or no text.
        """
        try:
            bytes(raw).decode()
            msgspec.json.decode(raw, type=Fields)
        except UNREADABLE:
            raise WorkerError(holder, "gave a ticket that is no JSON object", cause="bad_answer") from None
        return cls(holder=holder, raw=raw.copy())

    @classmethod
    def called(cls, name: str, holder: Worker) -> Ticket:
        """One of which nothing but its name is known, because it has not come."""
        return cls(holder=holder, raw=msgspec.Raw(msgspec.json.encode({"remote_request_id": name})))

    @property
    def id(self) -> str | None:
        """The ticket's id on its holder, if it has one that is text."""
        try:
            return msgspec.json.decode(self.raw, type=Named).remote_request_id
        except UNREADABLE:
            return None

    @property
    def kept(self) -> Ticket:
        """The same, which no decode instance of ours gives back: it is to be shown to another one."""
        fields = msgspec.json.decode(self.raw, type=Fields)
        said = fields | {"release_on_abort": msgspec.Raw(b"false")}
        return replace(self, raw=msgspec.Raw(msgspec.json.encode(said)))


class Renewed(msgspec.Struct, frozen=True):
    """What a holder answers."""

    renewed: bool = False


class Releases:
    """Lets go of tickets nobody will use, and asks for those that somebody else shall."""

    def __init__(self, peers: Peers, pool: Pool, client: WorkerClient) -> None:
        self._peers = peers
        self._pool = pool
        self._client = client
        self._turns = asyncio.Semaphore(MOST_USING_UP)

    def understood(self, holder: Worker) -> bool:
        """Whether a holder can be told, at whatever moment."""
        return self._pool.can("release", holder)

    async def end(self, ticket: Ticket, asked: ClientRequest, shown: Exchange | None) -> None:
        """Let go of a ticket, best effort; nothing is raised.

        Args:
            ticket: Which.
            asked: The request that it was for.
            shown: The exchange that it was sent with, or should have been, if any.
        """
        if self.understood(ticket.holder):
            await self._tell(ticket)
        elif shown is None or not shown.is_sent:
            try:
                async with asyncio.timeout(USE_UP_S), self._turns:
                    await self._use_up(ticket, asked, {shown.worker} if shown else set())
            except (RequestError, TimeoutError) as error:
                log.info("a ticket of %s was not used up: %r", ticket.holder.name, error)

    async def _use_up(self, ticket: Ticket, asked: ClientRequest, tried: set[Worker]) -> None:
        decode = self._pool.choose("decode", asked.demand, tried, partner=ticket.holder)
        if decode is None:
            return
        exchange, body = Exchange(decode, "other"), asked.body.last_leg(ticket.raw)
        with self._pool.vitals(decode).load.carrying(asked.demand.prompt_tokens):
            async with self._client.post(exchange, asked.path, body, asked.headers):
                await exchange.whole()

    async def _tell(self, ticket: Ticket) -> None:
        if (ticket_id := ticket.id) is None:
            return
        body = msgspec.json.encode({"ticket": ticket_id})
        try:
            await self._peers.ask(ticket.holder.url, "POST", "/tandem/release", body, timeout_s=RELEASE_TIMEOUT_S)
        except OSError as error:
            log.info("%s was not told to release ticket %s: %r", ticket.holder.name, ticket_id, error)

    async def renew(self, ticket: Ticket) -> bool:
        """Whether its holder confirms that a ticket is good for another decode instance."""
        body = msgspec.json.encode({"ticket": ticket.id})
        try:
            url, path = ticket.holder.url, "/tandem/renew"
            _, said = await self._peers.ask(url, "POST", path, body, timeout_s=RELEASE_TIMEOUT_S)
            return msgspec.json.decode(said, type=Renewed).renewed
        except (OSError, *UNREADABLE):
            return False
