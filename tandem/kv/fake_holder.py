"""A holder without an engine: some blocks under some tickets, for tests and benchmarks of a hand-off."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem.errors import TransferError
from tandem.kv.messages import Keep, Pull, Release
from tandem.kv.shards import Shards

ENGINE = f"engine-{os.getpid()}"
"""A holder's name unless it is given one; the local socket has it, so it is not another process's."""


@dataclass(eq=False)
class FakeTicket:
    """Blocks under one name; `compute` and `fail` play the prefill."""

    blocks: Sequence[int]
    state: bytes = b"state"
    ready: int = 0
    """How many of the blocks are computed."""
    failure: str | None = None
    ended: bool = False
    """It was used, released or has expired."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def compute(self, ready: int) -> None:
        """The first `ready` blocks are there now."""
        self.ready = ready
        self.changed.set()

    def fail(self, reason: str) -> None:
        """The prefill ends otherwise."""
        self.failure = reason
        self.changed.set()


@dataclass(eq=False)
class FakeOutgoing:
    """One pull of a fake ticket."""

    ticket: FakeTicket
    named: int
    closed: bool = False

    @property
    def count(self) -> int:
        """Blocks of the ticket."""
        return len(self.ticket.blocks)

    @property
    def state(self) -> bytes:
        """The ticket's."""
        return self.ticket.state

    async def next(self) -> list[int]:
        """The next computed blocks.

        Raises:
            TransferError: The ticket failed.
        """
        while self.named == self.ticket.ready < self.count and self.ticket.failure is None:
            self.ticket.changed.clear()
            await self.ticket.changed.wait()
        if self.ticket.failure is not None:
            raise TransferError(self.ticket.failure)
        blocks = list(self.ticket.blocks[self.named : self.ticket.ready])
        self.named = self.ticket.ready
        return blocks

    def check(self) -> None:
        """Look at the ticket.

        Raises:
            TransferError: It failed or has ended.
        """
        if self.ticket.failure is not None or self.ticket.ended:
            raise TransferError(self.ticket.failure or "the ticket has ended")

    def confirm(self) -> bool:
        """End the ticket."""
        stood, self.ticket.ended = not self.ticket.ended, True
        return stood

    def close(self) -> None:
        """Remember it."""
        self.closed = True


@dataclass(eq=False)
class FakeHolder:
    """Grants its tickets, and remembers what it was asked for."""

    shards: Shards
    engine_id: str = ENGINE
    tickets: dict[str, FakeTicket] = field(default_factory=dict)
    pulls: list[FakeOutgoing] = field(default_factory=list)
    told: list[Keep | Release] = field(default_factory=list)

    def add(self, name: str, blocks: Sequence[int], ready: int | None = None) -> FakeTicket:
        """Put blocks under a name, all computed unless `ready` says how many."""
        ticket = self.tickets[name] = FakeTicket(blocks, ready=len(blocks) if ready is None else ready)
        return ticket

    def open(self, pull: Pull) -> FakeOutgoing:
        """Begin a pull.

        Raises:
            TransferError: The ticket is another process's, unknown or used.
        """
        ticket = self.tickets.get(pull.ticket)
        if pull.engine_id != self.engine_id:
            raise TransferError("the ticket is another process's")
        if ticket is None or ticket.ended:
            raise TransferError("the ticket is unknown or used")
        outgoing = FakeOutgoing(ticket, pull.first)
        self.pulls.append(outgoing)
        return outgoing

    def keep(self, keep: Keep) -> None:
        """Remember it."""
        self.told.append(keep)

    def release(self, release: Release) -> None:
        """Remember it."""
        self.told.append(release)
