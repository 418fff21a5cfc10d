"""Pulls the blocks of requests whose prompt another instance prefilled, and keeps that instance informed.

While a request waits, its ticket's lease is renewed; when it ends before the blocks are here, the ticket is given back,
unless the gateway has other plans with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from tandem.engine.engine import Engine
from tandem.engine.fetch import Fetch
from tandem.engine.handoff import HandOff
from tandem.engine.sequence import Request
from tandem.errors import TransferError
from tandem.kv.messages import Keep, Pull, Release
from tandem.kv.puller import Peer, keep_leases, pull, release
from tandem.kv.shards import Shards
from tandem.protocol.kv import KVTransferParams

log = logging.getLogger(__name__)

KEEPS_PER_LEASE = 6
"""How often leases elsewhere are renewed, in their own duration; vLLM does it as often."""

GIVE_BACK_SECONDS = 2.0
"""Longest try to tell a holder that its ticket is not needed."""


class Fetcher:
    """All pulls of one instance.

    Args:
        shards: Where pulled blocks go.
        transports: How they may come, the best way first.
        timeout: Longest silence of a holder, in seconds.
    """

    def __init__(self, shards: Shards, transports: tuple[str, ...], timeout: float) -> None:
        self._shards = shards
        self._transports = transports
        self._timeout = timeout
        self._pulls: dict[Request, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._settled: set[Request] = set()
        """Whose ticket was used, or given back already."""

    def start(self, engine: Engine, wake: Callable[[], None]) -> None:
        """Work for this engine; call from the event loop."""
        self._engine = engine
        self._wake = wake
        self._keeping = asyncio.create_task(self._keep_leases())

    async def stop(self) -> None:
        """End everything that is under way."""
        tasks = [self._keeping, *self._pulls.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
            task = asyncio.create_task(_quietly(release(_peer(ticket), message, GIVE_BACK_SECONDS)))
            self._others.add(task)
            task.add_done_callback(self._others.discard)

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
        state = await pull(peer, asked, self._shards, fetch.blocks, self._timeout, self._transports)
        return HandOff.decode(state)

    def _ended(self, request: Request, fetch: Fetch, _: asyncio.Task[None]) -> None:
        del self._pulls[request]
        self._engine.end_fetch(fetch)
        self._wake()

    async def _keep_leases(self) -> None:
        """While requests wait here, their blocks elsewhere must not be given away."""
        interval = self._engine.options.lease_seconds / KEEPS_PER_LEASE
        while True:
            await asyncio.sleep(interval)
            holders: dict[Peer, list[str]] = {}
            for ticket in self._engine.awaited():
                holders.setdefault(_peer(ticket), []).append(ticket.remote_request_id or "")
            # All at once and briefly: a holder that is out of reach must not cost the others their leases.
            await asyncio.gather(
                *(
                    _quietly(keep_leases(peer, Keep(peer.engine_id, tickets), interval))
                    for peer, tickets in holders.items()
                )
            )


def _peer(ticket: KVTransferParams) -> Peer:
    return Peer(ticket.remote_host or "", ticket.remote_port or 0, ticket.remote_engine_id or "")


async def _quietly(message: Coroutine[Any, Any, None]) -> None:
    """Send what may get lost: the pull itself says what is wrong, and leases end by themselves."""
    with suppress(TransferError):
        await message
