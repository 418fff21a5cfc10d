"""The prefill side of the hand-off: tickets over blocks that are kept until somebody pulls them.

    computing ──▶ good ──▶ used | released | expired
        └──────────────▶ aborted (its prefill ended early) | released

Nothing is validated here: the decode side is told how things stand and does what its dialect does.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal

State = Literal["computing", "good", "used", "released", "expired", "aborted"]
Verdict = Literal["good", "used", "released", "expired", "aborted", "foreign", "other prompt", "other process"]

BLOCK: Final = 16
"""Tokens in a block."""


@dataclass(eq=False)
class Ticket:
    """A promise to keep one prompt's blocks."""

    name: str
    content: str
    tokens: int
    state: State = "computing"
    expires: float | None = None
    """Seconds since the epoch."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """It is computed, or it has ended."""

    @property
    def blocks(self) -> int:
        return -(-self.tokens // BLOCK)

    @property
    def held(self) -> bool:
        """Whether it keeps blocks."""
        return self.state in ("computing", "good")


class TicketBook:
    """All tickets of one prefill instance.

    Args:
        engine_id: Of this process.
        port: Where pulls are answered.
        lease_s: How long a computed ticket waits to be pulled.
    """

    def __init__(self, engine_id: str, port: int, lease_s: float) -> None:
        self._engine_id = engine_id
        self._port = port
        self._lease_s = lease_s
        self._tickets: dict[str, Ticket] = {}
        self.ends: Counter[str] = Counter()

    @property
    def held(self) -> list[Ticket]:
        """Those that keep blocks now."""
        return [ticket for ticket in self._tickets.values() if ticket.held]

    def open(self, content: str, tokens: int, name: str | None = None) -> Ticket:
        """A prefill begins."""
        ticket = Ticket(name or f"cmpl-{uuid.uuid4().hex}", content, tokens)
        self._tickets[ticket.name] = ticket
        return ticket

    def computed(self, ticket: Ticket) -> None:
        """The prefill is done: the lease begins."""
        if ticket.state == "computing":
            ticket.state, ticket.expires = "good", time.time() + self._lease_s
            ticket.changed.set()
            asyncio.get_running_loop().call_later(self._lease_s, self.end, ticket, "expired")

    def end(self, ticket: Ticket, how: State) -> bool:
        """Give its blocks back; False if that has happened already."""
        if not ticket.held:
            return False
        ticket.state = how
        self.ends[how] += 1
        ticket.changed.set()
        return True

    def release(self, name: str) -> bool:
        """Nobody will pull it."""
        return name in self._tickets and self.end(self._tickets[name], "released")

    async def pull(self, engine_id: str, name: str, content: str, *, strict: bool) -> Verdict:
        """Somebody reads the blocks; waits for those that are still computed.

        Args:
            engine_id: Of the process that the ticket names.
            name: The ticket's.
            content: Of the prompt it is shown for.
            strict: Refuse another prompt, and keep the blocks; vLLM reads them all the same.
        """
        if engine_id != self._engine_id:
            return "other process"
        if (ticket := self._tickets.get(name)) is None:
            return "foreign"
        if strict and ticket.content != content:
            return "other prompt"
        await ticket.changed.wait()
        if ticket.state != "good":
            assert ticket.state != "computing"
            return ticket.state
        self.end(ticket, "used")
        return "good" if ticket.content == content else "other prompt"

    def params(self, ticket: Ticket, *, native: bool) -> dict[str, Any]:
        """What the router gets to pass on."""
        computed = ticket.state != "computing"
        params = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(range(1, ticket.blocks + 1)) if computed else []],
            "remote_engine_id": self._engine_id,
            "remote_request_id": ticket.name,
            "remote_host": "127.0.0.1",
            "remote_port": self._port,
            "tp_size": 1,
            "remote_num_tokens": ticket.tokens,
            "remote_blocks_expiry_time": ticket.expires,
            "transfer_mode": "pull",
        }
        own = {"release_on_abort": True, "lease_seconds": self._lease_s}
        foreign = {"dcp_size": 1, "pp_size": 1, "remote_registration_generation": 4, "a_key_of_tomorrow": {"x": [1.5]}}
        return params | (own if native else foreign)
