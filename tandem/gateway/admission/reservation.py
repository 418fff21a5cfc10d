"""Room that a decode worker itself keeps for a request to come: it is asked before a prefill is paid for.

Reserving is an extension of tandem's own engine. It costs a round trip, and tells the truth where the ledger guesses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Final

import msgspec

from tandem.gateway.wire.peer import Peers
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.capacity import NoRoomError
from tandem.protocol.json_body import UNREADABLE

TIMEOUT_S: Final = 2.0

log = logging.getLogger(__name__)


class Reserved(msgspec.Struct, frozen=True):
    """What `POST /tandem/reserve` answers."""

    reservation: str


class Reservations:
    """Keeps room on workers, and gives back what nobody came for, in tasks that outlive the requests."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._tasks: set[asyncio.Task[None]] = set()

    async def keep(self, worker: Worker, tokens: int) -> str | None:
        """Reserve room for so many tokens: the name, or None where the worker says nothing that can be understood.

        Raises:
            NoRoomError: It has none.
        """
        asking = asyncio.create_task(self._ask(worker, "/tandem/reserve", {"tokens": tokens}))
        try:
            status, body = await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._begin(self._undo(worker, asking))
            raise
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            raise NoRoomError
        return _name(status, body)

    def give_back(self, worker: Worker, name: str) -> None:
        """Tell a worker that nobody will come, best effort; it need not be waited for."""
        self._begin(self._release(worker, name))

    async def finish(self) -> None:
        """Wait until everything is given back."""
        await asyncio.gather(*self._tasks)

    async def _undo(self, worker: Worker, asking: asyncio.Task[tuple[int, bytes]]) -> None:
        """Its client left while it was asked for; nobody else would know of it."""
        if (name := _name(*await asking)) is not None:
            await self._release(worker, name)

    async def _release(self, worker: Worker, name: str) -> None:
        status, _ = await self._ask(worker, "/tandem/release", {"reservation": name})
        if status != HTTPStatus.OK:
            log.info("%s was not told to release a reservation; its lease will end", worker.name)

    async def _ask(self, worker: Worker, path: str, body: dict[str, int | str]) -> tuple[int, bytes]:
        """Status and body; status 0 if there is no answer."""
        try:
            return await self._peers.ask(worker.url, "POST", path, msgspec.json.encode(body), timeout_s=TIMEOUT_S)
        except OSError:
            return 0, b""

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _name(status: int, body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=Reserved).reservation if status == HTTPStatus.OK else None
    except UNREADABLE:
        return None
