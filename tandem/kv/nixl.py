"""Blocks by NIXL, which reads another machine's memory with whatever connects the two: RDMA, NVLink, or TCP.

The holder's offer is its agent's metadata and where its caches lie; the puller reads. A read that was begun cannot be
called back: one from a frozen holder was seen to go on after its handle was released and its agent removed. So it goes
into a stage, from where the blocks are copied, and the stage of a read that did not end is not used again until it has.

The package is optional (`pip install 'tandem[nixl]'`). Run here between processes on CPU memory; its CUDA path is
complete and has not run yet.
"""

from __future__ import annotations

import asyncio
import importlib.util
import secrets
from collections.abc import Sequence
from functools import cache
from threading import Lock
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from tandem.errors import TransferError
from tandem.kv.copies import carry_out
from tandem.kv.landing import Landing, source_bytes
from tandem.kv.messages import Granted, Ready, Waiting, decode
from tandem.kv.pieces import sources
from tandem.kv.shards import Shards
from tandem.kv.wire import Wire

KINDS: Final = {"cpu": "DRAM", "cuda": "VRAM"}
"""Device types NIXL can read, and its names for their memory."""

STAGE: Final = 32 * 1024 * 1024
"""Bytes of a stage; more if one block is larger."""

POLL: Final = 0.0005
"""Seconds between two looks at a read under way."""

Address = Annotated[int, Meta(ge=0)]


class Region(msgspec.Struct, frozen=True):
    """Memory of one rank."""

    address: Address
    size: Address
    device: Address
    kind: str


class Offer(msgspec.Struct, frozen=True):
    """What a puller needs to read a holder's caches."""

    metadata: bytes
    regions: list[Region]
    """By rank."""


def installed() -> bool:
    """Whether the package is here."""
    return importlib.util.find_spec("nixl") is not None


def fits(shards: Shards) -> bool:
    """Whether NIXL can read and write these caches."""
    return installed() and all(cache.device.type in KINDS for cache in shards.caches)


class NixlSender:
    """The holder's side.

    Raises:
        TransferError: NIXL finds no way to be reached.
    """

    files: Sequence[int] = ()

    def __init__(self, shards: Shards) -> None:
        self._agent = _new_agent()
        caches = [cache.memory.data for cache in shards.caches]
        for data in caches:
            self._agent.register_memory([data])
        metadata = self._agent.get_agent_metadata()
        self.offer = msgspec.msgpack.encode(Offer(metadata, [_region(data) for data in caches]))

    async def send(self, wire: Wire, blocks: Sequence[int]) -> None:
        """Tell of blocks; the puller reads them itself."""
        await wire.send(Ready(list(blocks)))


class NixlReceiver:
    """The puller's side, for one pull.

    Raises:
        TransferError: What the holder offers cannot be read.
    """

    def __init__(self, shards: Shards, granted: Granted) -> None:
        self._offer = decode(granted.offer, Offer)
        if len(self._offer.regions) != granted.ranks:
            raise TransferError(f"it offers {len(self._offer.regions)} regions for {granted.ranks} ranks")
        self._shards = shards
        self._sources = sources(shards, granted.ranks)
        with _making:
            self._reader = _reader()

    async def receive(self, wire: Wire, ready: Ready, blocks: Sequence[int]) -> None:
        """Read the blocks of a Ready into `blocks`.

        Raises:
            TransferError: The holder has no such blocks, or the read failed.
            TimeoutError: The read took longer than a silence may.
        """
        for source in self._sources:
            region, size = self._offer.regions[source.rank], source_bytes(self._shards, source)
            at_once = max(1, STAGE // size)
            for start in range(0, len(blocks), at_once):
                theirs, ours = ready.blocks[start : start + at_once], blocks[start : start + at_once]
                if (max(theirs) + 1) * size > region.size:
                    raise TransferError(f"it has no block {max(theirs)}")
                stage = self._reader.stage(at_once * size, self._shards.caches[source.pieces[0].target].device)
                async with asyncio.timeout(wire.timeout):
                    await self._reader.read(self._offer.metadata, region, theirs, size, stage)
                landing = Landing(stage[: at_once * size].view(at_once, size), range(len(ours)), None)
                try:
                    await carry_out(landing.copies(self._shards, source, ours), len(ours) * size)
                finally:
                    self._reader.give_back(stage)
                await wire.send(Waiting())

    def close(self, *, whole: bool) -> None:
        """Meet the holder anew next time if this pull broke off."""
        if not whole:
            self._reader.forget(self._offer.metadata)


class Reader:
    """This process's agent for reading others' memory, and its stages."""

    def __init__(self) -> None:
        self._agent = _new_agent()
        self._names: dict[bytes, str] = {}
        self._free: list[Tensor] = []
        self._left: list[tuple[Any, Tensor]] = []

    def stage(self, size: int, device: torch.device) -> Tensor:
        """A free stage of at least `size` bytes, uint8."""
        self._left = [(handle, stage) for handle, stage in self._left if not self._ended(handle, stage)]
        for place, stage in enumerate(self._free):
            if stage.device == device and len(stage) >= size:
                return self._free.pop(place)
        stage = torch.empty(max(size, STAGE), dtype=torch.uint8, device=device)
        self._agent.register_memory([stage])
        return stage

    def give_back(self, stage: Tensor) -> None:
        """A stage is free again."""
        self._free.append(stage)

    async def read(self, metadata: bytes, region: Region, blocks: Sequence[int], size: int, stage: Tensor) -> None:
        """Read blocks of `size` bytes into a stage, one after the other.

        If it raises, the stage is gone until the read has ended.

        Raises:
            TransferError: The read failed.
        """
        try:
            handle = self._begin(metadata, region, blocks, size, stage)
        except _errors() as error:
            raise TransferError(f"NIXL cannot read from it ({error})") from None
        try:
            while (state := self._state(handle)) == "PROC":  # noqa: ASYNC110 (NIXL has nothing to wait for)
                await asyncio.sleep(POLL)
        except BaseException:
            self._left.append((handle, stage))
            raise
        self._agent.release_xfer_handle(handle)
        if state != "DONE":
            self.give_back(stage)
            raise TransferError(f"NIXL could not read from it ({state})")

    def forget(self, metadata: bytes) -> None:
        """Connect to an agent anew the next time."""
        name = self._names.pop(metadata, None)
        if name is not None:
            self._agent.remove_remote_agent(name)

    def _begin(self, metadata: bytes, region: Region, blocks: Sequence[int], size: int, stage: Tensor) -> Any:
        if metadata not in self._names:
            self._names[metadata] = self._agent.add_remote_agent(metadata)
        here = _region(stage)
        ours = [(here.address + place * size, size, here.device) for place in range(len(blocks))]
        theirs = [(region.address + block * size, size, region.device) for block in blocks]
        handle = self._agent.initialize_xfer(
            "READ",
            self._agent.get_xfer_descs(np.array(ours, dtype=np.uint64), here.kind),
            self._agent.get_xfer_descs(np.array(theirs, dtype=np.uint64), region.kind),
            self._names[metadata],
        )
        self._agent.transfer(handle)
        return handle

    def _state(self, handle: Any) -> str:
        try:
            return str(self._agent.check_xfer_state(handle))
        except _errors() as error:
            return str(error)

    def _ended(self, handle: Any, stage: Tensor) -> bool:
        if self._state(handle) == "PROC":
            return False
        self._agent.release_xfer_handle(handle)
        self.give_back(stage)
        return True


_making = Lock()


@cache
def _reader() -> Reader:
    return Reader()


def _new_agent() -> Any:
    from nixl._api import nixl_agent, nixl_agent_config, nixl_thread_sync_t  # it takes a second

    config = nixl_agent_config(backends=["UCX"], sync_mode=nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT)
    agent = nixl_agent(secrets.token_hex(16), config)
    if "UCX" not in agent.backends:
        raise TransferError("NIXL has no UCX here")
    return agent


def _errors() -> tuple[type[Exception], ...]:
    """What NIXL raises; they have no common base."""
    from nixl import _bindings

    return tuple(value for name, value in vars(_bindings).items() if name.startswith("nixl") and name.endswith("Error"))


def _region(data: Tensor) -> Region:
    return Region(data.data_ptr(), data.nbytes, data.device.index or 0, KINDS[data.device.type])
