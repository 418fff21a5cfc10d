"""Blocks by NIXL, which reads another machine's memory with whatever connects the two: RDMA, NVLink, or TCP.

The holder's offer is its agent's metadata and where its caches lie; the puller reads (`nixl_reader.py`).

The package is optional (`pip install -e '.[nixl]'`). Run here between processes on CPU memory; its CUDA path is
complete and has not run yet.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from typing import Final

import msgspec
import torch

from tandem.errors import TransferError
from tandem.kv.copies import carry_out, copying_threads
from tandem.kv.landing import Landing, source_bytes
from tandem.kv.messages import Granted, Ready, Waiting, decode
from tandem.kv.nixl_reader import KINDS, Reader, Region, new_agent
from tandem.kv.pieces import Source, sources
from tandem.kv.shards import Shards
from tandem.kv.threads import Threads
from tandem.kv.wire import Wire

STAGE: Final = 32 * 1024 * 1024
"""Bytes of a stage; more if one block is larger."""


class Offer(msgspec.Struct, frozen=True):
    """What a puller needs to read a holder's caches."""

    metadata: bytes
    regions: list[Region]
    """By rank."""


def installed() -> bool:
    """Whether the package is here."""
    return importlib.util.find_spec("nixl") is not None


def lack(device: torch.device) -> str | None:
    """Why NIXL cannot read and write caches on a device; None if it can."""
    if not installed():
        return "its package is missing; run `pip install -e '.[nixl]'` in tandem's folder"
    return None if device.type in KINDS else f"it cannot read memory of {device}; choose auto or tcp"


class NixlSender:
    """The holder's side.

    Raises:
        TransferError: NIXL finds no way to be reached.
    """

    files: Sequence[int] = ()

    def __init__(self, shards: Shards) -> None:
        self._agent = new_agent()
        caches = [cache.memory.data for cache in shards.caches]
        for data in caches:
            self._agent.register_memory([data])
        metadata = self._agent.get_agent_metadata()
        self.offer = msgspec.msgpack.encode(Offer(metadata, [Region.of(data) for data in caches]))

    async def send(self, wire: Wire, blocks: Sequence[int]) -> None:
        """Tell of blocks; the puller reads them itself."""
        await wire.send(Ready(list(blocks)))


class NixlReceiver:
    """The puller's side."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._threads = copying_threads()
        self._making = asyncio.Lock()
        self._reader: Reader | None = None

    async def open(self, granted: Granted, files: Sequence[int]) -> NixlIncoming:
        """Meet the holder's agent.

        Raises:
            TransferError: What the holder offers cannot be read.
        """
        offer = decode(granted.offer, Offer)
        if len(offer.regions) != granted.ranks:
            raise TransferError(f"it offers {len(offer.regions)} regions for {granted.ranks} ranks")
        needed = sources(self._shards, granted.ranks)
        async with self._making:
            if self._reader is None:  # an agent takes a second, and an instance may never need one
                self._reader = await asyncio.to_thread(Reader, max(STAGE, self._shards.layout.bytes_per_block))
        self._reader.meet(offer.metadata)
        return NixlIncoming(self._shards, needed, offer, self._reader, self._threads)

    def close(self) -> None:
        """Give up the agent."""
        self._reader = None
        self._threads.close()


class NixlIncoming:
    """One pull.

    Args:
        shards: Where blocks go.
        needed: What is needed of the holder.
        offer: The holder's.
        reader: Has met it.
        threads: For the copies out of stages.
    """

    def __init__(
        self, shards: Shards, needed: Sequence[Source], offer: Offer, reader: Reader, threads: Threads
    ) -> None:
        self._shards = shards
        self._sources = needed
        self._offer = offer
        self._reader = reader
        self._threads = threads

    async def receive(self, wire: Wire, ready: Ready, blocks: Sequence[int]) -> None:
        """Read the blocks of a Ready into `blocks`.

        Raises:
            TransferError: The holder has no such blocks, or the read failed.
            TimeoutError: The read took longer than a silence may.
        """
        for source in self._sources:
            at_once = max(1, STAGE // source_bytes(self._shards, source))
            for start in range(0, len(blocks), at_once):
                some = slice(start, start + at_once)
                await self._read(source, ready.blocks[some], blocks[some], wire.timeout)
                await wire.send(Waiting())

    def close(self, *, whole: bool) -> None:
        """Meet the holder anew next time if this pull broke off."""
        self._reader.part(self._offer.metadata, whole=whole)

    async def _read(self, source: Source, theirs: Sequence[int], ours: Sequence[int], limit: float) -> None:
        region, size = self._offer.regions[source.rank], source_bytes(self._shards, source)
        if (max(theirs) + 1) * size > region.size:
            raise TransferError(f"it has no block {max(theirs)}")
        device = self._shards.caches[source.pieces[0].target].device
        async with asyncio.timeout(limit):
            stage = await self._reader.read(self._offer.metadata, region, theirs, size, device)
        landing = Landing(stage[: len(ours) * size].view(len(ours), size), range(len(ours)), None)
        try:
            await carry_out(landing.copies(self._shards, source, ours), len(ours) * size, self._threads)
        finally:
            self._reader.give_back(stage)
