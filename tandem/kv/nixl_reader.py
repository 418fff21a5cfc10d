"""A NIXL agent that reads other instances' memory, and the stages it reads into.

A read that was begun cannot be called back: one from a frozen holder was seen to go on after its handle was released
and its agent removed. So it goes into a stage, from where the blocks are copied. The stage of a read that was given up
is not used again, and is kept until the read has ended; until then nothing more is read from that holder.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from tandem.errors import TransferError

KINDS: Final = {"cpu": "DRAM", "cuda": "VRAM"}
"""Device types NIXL can read, and its names for their memory."""

POLL: Final = 0.0005
"""Seconds between two looks at a read under way."""

STAGES: Final = 8
"""Most stages of a device, and so reads at a time, besides those of reads that were given up."""

MOST: Final = 16
"""Holders that stay known while nobody pulls from them."""

Address = Annotated[int, Meta(ge=0)]


class Region(msgspec.Struct, frozen=True):
    """Memory of one rank."""

    address: Address
    size: Address
    device: Address
    kind: str

    @classmethod
    def of(cls, data: Tensor) -> Region:
        """A tensor's memory."""
        return cls(data.data_ptr(), data.nbytes, data.device.index or 0, KINDS[data.device.type])


@dataclass(eq=False)
class Holder:
    """Another instance's agent."""

    name: str
    pulls: int = 0
    """Under way."""
    broken: bool = False
    """A pull broke off, so it is to be met anew."""


@dataclass(frozen=True, eq=False)
class Left:
    """A read that was given up and may still go on."""

    holder: bytes
    handle: Any
    stage: Tensor


class Reader:
    """One agent, its stages and the holders it knows, each by its agent's metadata.

    Args:
        size: Bytes of a stage.

    Raises:
        TransferError: NIXL finds no way to reach anybody.
    """

    def __init__(self, size: int) -> None:
        self._agent = new_agent()
        self._size = size
        self._holders: dict[bytes, Holder] = {}  # the longest unused first
        self._free: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
        self._made: defaultdict[torch.device, int] = defaultdict(int)
        self._left: list[Left] = []

    def meet(self, metadata: bytes) -> None:
        """Know a holder until `part`.

        Raises:
            TransferError: That is no agent.
        """
        holder = self._holders.pop(metadata, None)
        try:
            holder = holder or Holder(self._agent.add_remote_agent(metadata))
        except _errors() as error:
            raise TransferError(f"NIXL cannot reach it ({error})") from None
        self._holders[metadata] = holder
        holder.pulls += 1

    def part(self, metadata: bytes, *, whole: bool) -> None:
        """A pull is over, and went well or not."""
        holder = self._holders[metadata]
        holder.pulls -= 1
        holder.broken |= not whole
        if holder.broken and not holder.pulls:
            self._forget(metadata)
        idle = [known for known, one in self._holders.items() if not one.pulls]
        for known in idle[:-MOST]:
            self._forget(known)

    async def read(
        self, metadata: bytes, region: Region, blocks: Sequence[int], size: int, device: torch.device
    ) -> Tensor:
        """Read blocks of `size` bytes from a region of a holder that was met, one after the other.

        Returns:
            A stage on `device` that begins with them; for `give_back`.

        Raises:
            TransferError: The read failed.
        """
        stage = await self._stage(metadata, device)
        try:
            handle = self._begin(metadata, region, blocks, size, stage)
        except BaseException:
            self.give_back(stage)
            raise
        try:
            while (state := self._state(handle)) == "PROC":  # noqa: ASYNC110 (NIXL has nothing to wait for)
                await asyncio.sleep(POLL)
        except BaseException:
            self._left.append(Left(metadata, handle, stage))
            self._made[device] -= 1
            raise
        self._agent.release_xfer_handle(handle)
        if state != "DONE":
            self.give_back(stage)
            raise TransferError(f"NIXL could not read from it ({state})")
        return stage

    def give_back(self, stage: Tensor) -> None:
        """A stage is free again."""
        self._free[stage.device].append(stage)

    async def _stage(self, metadata: bytes, device: torch.device) -> Tensor:
        """A free stage, uint8 [size]; waits for one, and for the end of reads from this holder that were given up."""
        while self._lags(metadata) or (not self._free[device] and self._made[device] == STAGES):  # noqa: ASYNC110
            await asyncio.sleep(POLL)
        if self._free[device]:
            return self._free[device].pop()
        stage = torch.empty(self._size, dtype=torch.uint8, device=device)
        self._agent.register_memory([stage])
        self._made[device] += 1
        return stage

    def _begin(self, metadata: bytes, region: Region, blocks: Sequence[int], size: int, stage: Tensor) -> Any:
        here = Region.of(stage)
        ours = [(here.address + place * size, size, here.device) for place in range(len(blocks))]
        theirs = [(region.address + block * size, size, region.device) for block in blocks]
        try:
            handle = self._agent.initialize_xfer(
                "READ",
                self._agent.get_xfer_descs(np.array(ours, dtype=np.uint64), here.kind),
                self._agent.get_xfer_descs(np.array(theirs, dtype=np.uint64), region.kind),
                self._holders[metadata].name,
            )
            self._agent.transfer(handle)
        except _errors() as error:
            raise TransferError(f"NIXL cannot read from it ({error})") from None
        return handle

    def _state(self, handle: Any) -> str:
        try:
            return str(self._agent.check_xfer_state(handle))
        except _errors() as error:
            return str(error)

    def _lags(self, metadata: bytes) -> bool:
        self._left = [left for left in self._left if not self._ended(left)]
        return any(left.holder == metadata for left in self._left)

    def _ended(self, left: Left) -> bool:
        if self._state(left.handle) == "PROC":
            return False
        self._agent.release_xfer_handle(left.handle)
        self._agent.deregister_memory(self._agent.get_reg_descs([left.stage]))
        return True

    def _forget(self, metadata: bytes) -> None:
        with suppress(*_errors()):  # it has noticed by itself that nobody is there
            self._agent.remove_remote_agent(self._holders.pop(metadata).name)


def new_agent() -> Any:
    """An agent that connects by UCX.

    Raises:
        TransferError: There is no UCX.
    """
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
