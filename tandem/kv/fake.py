"""A transport within one process, for tests: it copies head by head, simply, and breaks off or waits when told to."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem.errors import TransferError
from tandem.kv.messages import Granted, Ready
from tandem.kv.shards import Shards
from tandem.kv.transport import Transport
from tandem.kv.wire import Wire


@dataclass(eq=False)
class FakeTransport:
    """Both sides of it, for holders and pullers that are made with the same one."""

    breaks_after: float = math.inf
    """Blocks that arrive, over all pulls, before the connection is lost."""
    goes_on: asyncio.Event | None = None
    """What arrives is waited for until this is set."""
    arrived: int = 0
    """Blocks so far."""
    holders: dict[bytes, Shards] = field(default_factory=dict)
    """Offer -> whose blocks they are."""

    @property
    def transport(self) -> Transport:
        """As it stands beside the others."""
        return Transport(
            sender=lambda shards: FakeSender(self, shards),
            receiver=lambda shards: FakeReceiver(self, shards),
            lack=lambda device: None,
        )


class FakeSender:
    """The holder's side: it only says which blocks there are."""

    files: Sequence[int] = ()

    def __init__(self, fake: FakeTransport, shards: Shards) -> None:
        self.offer = str(len(fake.holders)).encode()
        fake.holders[self.offer] = shards

    async def send(self, wire: Wire, blocks: Sequence[int]) -> None:
        """Tell of blocks."""
        await wire.send(Ready(list(blocks)))


@dataclass(eq=False)
class FakeReceiver:
    """The puller's side."""

    fake: FakeTransport
    shards: Shards

    async def open(self, granted: Granted, files: Sequence[int]) -> FakeIncoming:
        """Begin a pull.

        Raises:
            TransferError: The holder's transport is another one.
        """
        if granted.offer not in self.fake.holders:
            raise TransferError("its transport is not this fake")
        return FakeIncoming(self.fake, self.shards, self.fake.holders[granted.offer])

    def close(self) -> None:
        """Nothing is kept."""


@dataclass(eq=False)
class FakeIncoming:
    """One pull."""

    fake: FakeTransport
    ours: Shards
    theirs: Shards

    async def receive(self, wire: Wire, ready: Ready, blocks: Sequence[int]) -> None:
        """Copy the blocks of a Ready, one by one.

        Raises:
            OSError: It was to break off.
        """
        for their_block, our_block in zip(ready.blocks, blocks, strict=True):
            if self.fake.goes_on is not None:
                await self.fake.goes_on.wait()
            if self.fake.arrived >= self.fake.breaks_after:
                raise ConnectionResetError("the connection was lost")
            self._copy(their_block, our_block)
            self.fake.arrived += 1

    def close(self, *, whole: bool) -> None:
        """Nothing is kept."""

    def _copy(self, their_block: int, our_block: int) -> None:
        """Every head that one of our ranks holds, from a rank of theirs that has it."""
        for rank, cache in enumerate(self.ours.caches):
            for place, head in enumerate(self.ours.heads(rank)):
                holder = next(one for one in range(len(self.theirs.caches)) if head in self.theirs.heads(one))
                there = self.theirs.heads(holder).index(head)
                of = self.theirs.caches[holder].blocks[their_block]
                cache.blocks[our_block, ..., place, :] = of[..., there, :]
