"""The ticket between the two legs: who holds a request's keys and values, and how to let go of them unused.

Telling the holder is an extension of tandem's own engine; another engine frees the blocks when its lease ends.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tandem.gateway.peer import Peers
from tandem.gateway.pool import Pool
from tandem.gateway.worker import Worker

RELEASE_TIMEOUT_S: Final = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A prefill instance's promise to keep one request's blocks until they are pulled."""

    holder: Worker
    raw: msgspec.Raw
    """`kv_transfer_params` of its answer, passed on byte for byte."""

    @classmethod
    def called(cls, name: str, holder: Worker) -> Ticket:
        """One of which nothing but its name is known, because it has not come."""
        return cls(holder=holder, raw=msgspec.Raw(msgspec.json.encode({"remote_request_id": name})))

    @property
    def id(self) -> str | None:
        """The ticket's id on its holder, if it has one."""
        fields: Any = msgspec.json.decode(self.raw)
        found = fields.get("remote_request_id") if isinstance(fields, dict) else None
        return found if isinstance(found, str) else None


class Releases:
    """Tells holders to let go of tickets nobody will use."""

    def __init__(self, peers: Peers, pool: Pool) -> None:
        self._peers = peers
        self._pool = pool

    def understood(self, holder: Worker) -> bool:
        """Whether telling `holder` has a purpose."""
        return self._pool.can("release", holder)

    async def tell(self, ticket: Ticket) -> None:
        """Tell the holder, best effort; nothing is raised."""
        if not self.understood(ticket.holder) or (ticket_id := ticket.id) is None:
            return
        body = msgspec.json.encode({"ticket": ticket_id})
        try:
            await self._peers.ask(ticket.holder.url, "POST", "/tandem/release", body, timeout_s=RELEASE_TIMEOUT_S)
        except OSError as error:
            log.info("%s was not told to release ticket %s: %r", ticket.holder.name, ticket_id, error)
