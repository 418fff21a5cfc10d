"""Pulls the blocks of requests whose prompt another instance prefilled, and keeps that instance informed.

While a request waits, its ticket's lease is renewed; when it ends before the blocks are here, the ticket is given back,
unless the gateway has other plans with it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from tandem.engine.engine import Engine
from tandem.engine.fetch import Fetch
from tandem.engine.handoff import HandOff
from tandem.engine.request import Request
from tandem.errors import TransferError
from tandem.kv.messages import Keep, Pull, Release
from tandem.kv.puller import Peer, Puller
from tandem.protocol.kv import KVTransferParams

log = logging.getLogger(__name__)

KEEPS_PER_LEASE = 6
"""How often leases elsewhere are renewed, in their own duration; vLLM does it as often."""

LOOK_SECONDS = 0.25
"""How often is looked whether a lease elsewhere has to be renewed."""

TELL_SECONDS = 2.0
"""Longest try to tell a holder something about its tickets."""


class Fetcher:
    """All pulls of one instance.

    Args:
        puller: What pulls; closed by `stop`.
    """

    def __init__(self, puller: Puller) -> None:
        self._puller = puller
        self._pulls: dict[Request, asyncio.Task[None]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._settled: set[Request] = set()
        """Whose ticket was used, or given back already."""

    def start(self, engine: Engine, wake: Callable[[], None]) -> None:
        """Work for this engine; call from the event loop."""
        self._engine = engine
        self._wake = wake
        self._keeping = asyncio.create_task(self._keep_leases())

    async def stop(self) -> None:
        """End the pulls under way, and give holders their time to hear what they are told."""
        tasks = [self._keeping, *self._pulls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._telling:
            await asyncio.wait(self._telling)
        self._puller.close()

    def begin(self, fetch: Fetch, *, wanted: bool) -> None:
        """Pull the blocks of one request, if somebody still waits for its answer."""
        if not wanted:
            self._engine.end_fetch(fetch)
            return
        request = fetch.sequence.request
        task = self._pulls[request] = asyncio.create_task(self._fetch(request, fetch))
        task.add_done_callback(partial(self._ended, request, fetch))

    def finish(self, request: Request) -> None:
        """The request has ended: stop its pull, and give back a ticket that was not used."""
        if request.fetch_from is None:
            return
        if task := self._pulls.get(request):
            task.cancel()
        if request not in self._settled:
            self.give_back(request.fetch_from)
        self._settled.discard(request)

    def give_back(self, ticket: KVTransferParams) -> None:
        """Tell a ticket's holder that nobody here will pull it; best effort."""
        if ticket.release_on_abort:
            message = Release(ticket.remote_engine_id or "", ticket.remote_request_id or "")
            self._tell(self._puller.release(_peer(ticket), message, TELL_SECONDS))

    async def _fetch(self, request: Request, fetch: Fetch) -> None:
        ticket = request.fetch_from
        assert ticket is not None
        try:
            state = await self._pull(ticket, fetch)
        except TransferError as error:
            reason = str(error)
        except Exception:
            log.exception("a KV pull failed")
            reason = "the KV pull failed; the decode instance's log says why"
        else:
            self._settled.add(request)
            self._engine.arrive(fetch, state)
            return
        log.warning("request %s: %s", request.id, reason)
        self._settled.add(request)
        self.give_back(ticket)
        self._engine.miss(fetch, reason)

    async def _pull(self, ticket: KVTransferParams, fetch: Fetch) -> HandOff:
        peer = _peer(ticket)
        asked = Pull(
            ticket=ticket.remote_request_id or "",
            engine_id=peer.engine_id,
            digest=self._engine.identity.digest,
            content=fetch.content,
            first=fetch.first,
        )
        return HandOff.decode(await self._puller.pull(peer, asked, fetch.blocks))

    def _ended(self, request: Request, fetch: Fetch, _: asyncio.Task[None]) -> None:
        del self._pulls[request]
        self._engine.end_fetch(fetch)
        self._wake()

    async def _keep_leases(self) -> None:
        """While requests wait here, their blocks elsewhere must not be given away."""
        kept: dict[Peer, float] = {}
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                kept = self._keep_due(kept)
            except Exception:
                log.exception("leases of KV tickets could not be renewed")

    def _keep_due(self, kept: Mapping[Peer, float]) -> dict[Peer, float]:
        """Renew leases whose holder was told so long ago (`kept`) that it is time; returns when each was told last."""
        now = time.monotonic()
        awaited: dict[Peer, list[KVTransferParams]] = {}
        for ticket in self._engine.awaited():
            awaited.setdefault(_peer(ticket), []).append(ticket)
        told = {peer: kept.get(peer, -math.inf) for peer in awaited}
        for peer, tickets in awaited.items():
            shortest = min(ticket.lease_seconds or self._engine.options.lease_seconds for ticket in tickets)
            if now - told[peer] >= shortest / KEEPS_PER_LEASE:
                told[peer] = now
                names = [ticket.remote_request_id or "" for ticket in tickets]
                self._tell(self._puller.keep(peer, Keep(peer.engine_id, names), TELL_SECONDS))
        return told

    def _tell(self, message: Coroutine[Any, Any, None]) -> None:
        """Send beside everything else: a holder that is out of reach must not cost others their leases."""
        task = asyncio.create_task(_quietly(message))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _peer(ticket: KVTransferParams) -> Peer:
    return Peer(ticket.remote_host or "", ticket.remote_port or 0, ticket.remote_engine_id or "")


async def _quietly(message: Coroutine[Any, Any, None]) -> None:
    """Send what may get lost: the pull itself says what is wrong, and leases end by themselves."""
    try:
        await message
    except TransferError as error:
        log.debug("%s", error)
    except Exception:
        log.exception("a holder could not be told about its KV tickets")
