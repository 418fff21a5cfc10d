"""Blocks by way of memory that both processes map: one copy, from cache to cache.

With Granted go the holder's memory descriptors. They are mapped once and read-only; a mapping keeps the memory of a
holder that died, so it is dropped when a pull breaks off, and when none came for a while.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch

from tandem.errors import TransferError
from tandem.kv.copies import SLICE, carry_out, copying_threads
from tandem.kv.landing import source_bytes
from tandem.kv.memory import CAN_SHARE, mapped_to_read, seal
from tandem.kv.messages import Granted, Ready
from tandem.kv.pieces import Bytes, Source, by_head, rows, runs, sources
from tandem.kv.shards import Shards
from tandem.kv.threads import Threads
from tandem.kv.wire import Wire

UNUSED: Final = 10.0
"""Seconds after which a mapping is dropped; to map again costs about a tenth of a pull."""

MOST: Final = 16
"""Holders whose memory is mapped at once."""


def lack(device: torch.device) -> str | None:
    """Why caches on a device cannot be handed to another process; None if they can."""
    if device.type == "cpu" and CAN_SHARE:
        return None
    return f"processes of this system cannot share memory on {device}; choose auto or tcp"


class MemorySender:
    """The holder's side; its ranks have mapped their memory by now, because from here on nobody else can write it."""

    offer = b""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards  # its memory closes the descriptors when it dies
        self.files = [cache.memory.file for cache in shards.caches if cache.memory.file is not None]
        for file in self.files:
            seal(file)

    async def send(self, wire: Wire, blocks: Sequence[int]) -> None:
        """Tell of blocks; the puller copies them itself."""
        await wire.send(Ready(list(blocks)))


Identity = tuple[tuple[int, int], ...]
"""Device and inode of each descriptor."""


class Mappings:
    """Other processes' memory, known again by the descriptors that are sent with every pull."""

    def __init__(self) -> None:
        self._known: dict[Identity, list[memoryview]] = {}
        self._drops: dict[Identity, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Number of holders whose memory is mapped."""
        return len(self._known)

    def of(self, identity: Identity, files: Sequence[int]) -> list[memoryview]:
        """The memory of descriptors, mapped for a while.

        Raises:
            OSError: They cannot be mapped.
        """
        memory = self._known.get(identity) or [mapped_to_read(file) for file in files]
        self.drop(identity)
        if len(self._known) >= MOST:
            self.drop(next(iter(self._known)))
        self._known[identity] = memory
        self._drops[identity] = asyncio.get_running_loop().call_later(UNUSED, self.drop, identity)
        return memory

    def drop(self, identity: Identity) -> None:
        """Forget memory; it is unmapped once nobody reads it any more."""
        self._known.pop(identity, None)
        timer = self._drops.pop(identity, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        """Forget all."""
        for identity in list(self._known):
            self.drop(identity)


class MemoryReceiver:
    """The puller's side."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._mappings = Mappings()
        self._threads = copying_threads()

    async def open(self, granted: Granted, files: Sequence[int]) -> MemoryIncoming:
        """Map the holder's memory.

        Raises:
            TransferError: What it offers is not the memory of its ranks.
        """
        if len(files) != granted.ranks:
            raise TransferError(f"{len(files)} memory descriptors came for {granted.ranks} ranks")
        identity = identity_of(files)
        try:
            memory = self._mappings.of(identity, files)
            parts = [(one, _blocks(memory[one.rank], self._shards, one)) for one in sources(self._shards, len(files))]
        except (OSError, ValueError) as error:
            raise TransferError(f"its memory cannot be read ({error})") from None
        return MemoryIncoming(self._shards, parts, self._threads, partial(self._mappings.drop, identity))

    def close(self) -> None:
        """Unmap everything."""
        self._mappings.close()
        self._threads.close()


class MemoryIncoming:
    """One pull.

    Args:
        shards: Where blocks go.
        parts: What is needed of the holder, and its blocks by head.
        threads: For the copies.
        forget: Called if the pull broke off.
    """

    def __init__(
        self, shards: Shards, parts: list[tuple[Source, Bytes]], threads: Threads, forget: Callable[[], None]
    ) -> None:
        self._shards = shards
        self._parts = parts
        self._threads = threads
        self._forget = forget

    async def receive(self, wire: Wire, ready: Ready, blocks: Sequence[int]) -> None:
        """Copy the blocks of a Ready into `blocks`.

        Raises:
            TransferError: The holder has no such blocks.
        """
        if any(max(ready.blocks) >= len(data) for _, data in self._parts):
            raise TransferError(f"it has no block {max(ready.blocks)}")
        copies = [copy for source, data in self._parts for copy in self._copies(source, data, ready.blocks, blocks)]
        await carry_out(copies, len(blocks) * self._shards.layout.bytes_per_block, self._threads)

    def close(self, *, whole: bool) -> None:
        """Keep the mapping for the next pull if this one went well."""
        self._parts = []  # an error's traceback would keep the memory
        if not whole:
            self._forget()

    def _copies(
        self, source: Source, data: Bytes, theirs: Sequence[int], ours: Sequence[int]
    ) -> Iterator[Callable[[], object]]:
        for piece in source.pieces:
            cache = self._shards.caches[piece.target]
            target = by_head(rows(cache).numpy(), self._shards, cache.layout.kv_heads)[:, :, piece.put]
            taken = data[:, :, piece.take]
            for start, stop in runs(theirs, ours, most=max(1, SLICE // cache.layout.bytes_per_block)):
                to, of, count = ours[start], theirs[start], stop - start
                yield partial(np.copyto, target[to : to + count], taken[of : of + count])


def identity_of(files: Sequence[int]) -> Identity:
    """What descriptors stand for."""
    stats = [os.fstat(file) for file in files]
    return tuple((stat.st_dev, stat.st_ino) for stat in stats)


def _blocks(memory: memoryview, shards: Shards, source: Source) -> Bytes:
    """A rank's blocks by head.

    Raises:
        ValueError: It is not a whole number of them.
    """
    data = np.frombuffer(memory, dtype=np.uint8).reshape(-1, source_bytes(shards, source))
    return by_head(data, shards, len(source.heads))
