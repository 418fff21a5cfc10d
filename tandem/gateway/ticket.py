"""The ticket between the two legs: who holds a request's keys and values, and how to let go of them unused.

Telling the holder is an extension of tandem's own engine; another engine answers 404 and frees the blocks when its
lease ends, which is also what covers a ticket that was still on the wire when the client went.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec

from tandem.gateway.pool import Worker

RELEASE_TIMEOUT_S: Final = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A prefill instance's promise to keep one request's blocks until they are pulled."""

    holder: Worker
    raw: msgspec.Raw
    """`kv_transfer_params` of its answer, passed on byte for byte."""

    @property
    def id(self) -> str | None:
        """The ticket's id on its holder, if it has one."""
        fields: Any = msgspec.json.decode(self.raw)
        found = fields.get("remote_request_id") if isinstance(fields, dict) else None
        return found if isinstance(found, str) else None


class Releases:
    """Tells holders to let go of tickets nobody will use: best effort, in tasks that outlive the request."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, ticket: Ticket) -> None:
        """Start telling the holder; returns at once, and nothing is raised later."""
        task = asyncio.create_task(self._tell(ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for what was begun."""
        await asyncio.gather(*self._tasks)

    async def _tell(self, ticket: Ticket) -> None:
        if (ticket_id := ticket.id) is None:
            return
        url = f"{ticket.holder.url}/tandem/release"
        timeout = aiohttp.ClientTimeout(total=RELEASE_TIMEOUT_S)
        try:
            async with self._session.post(url, json={"ticket": ticket_id}, timeout=timeout) as response:
                await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.info("%s was not told to release ticket %s: %r", ticket.holder.name, ticket_id, error)
