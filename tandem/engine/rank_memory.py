"""The caches of an instance's ranks, made by the first rank and handed to the others.

So the first rank, which moves blocks to and from other instances, reaches every rank's.
"""

from __future__ import annotations

import msgspec
import torch

from tandem.errors import UsageError
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.memory import CAN_SHARE, Memory, mapped


class SharedFile(msgspec.Struct, frozen=True, tag=True):
    """A descriptor that the other process inherits under the same number."""

    file: int


class SharedDevice(msgspec.Struct, frozen=True, tag=True):
    """A handle on a device's memory of another process: what torch, and likewise torch_npu, gives, in that order."""

    device: int
    handle: bytes
    size: int
    offset: int
    counter: bytes
    counter_offset: int
    event: bytes
    event_needed: bool


Shared = SharedFile | SharedDevice


def rank_caches(layout: CacheLayout, blocks: int, device: torch.device, ranks: int) -> list[KVCache]:
    """A cache for every rank of an instance, in rank order.

    Args:
        layout: Of all ranks together.
        blocks: Of each; block i of every rank together is block i of the instance.
        device: Of an instance with one rank; with more, each has its own device of this kind, but all share the CPU.
        ranks: How many there are.

    Raises:
        UsageError: The heads cannot be shared out, there are too few devices, or the ranks' memory cannot be shared.
        RuntimeError: A device has not the memory.
    """
    devices = [device] if ranks == 1 else _devices(device, ranks)
    return [KVCache(layout.of_rank(rank, ranks), blocks, one) for rank, one in enumerate(devices)]


def shared(cache: KVCache) -> Shared:
    """What another process needs to reach a cache's memory.

    That of a device has not been run yet.
    """
    if cache.memory.file is not None:
        return SharedFile(cache.memory.file)
    return SharedDevice(*getattr(cache.memory.data.untyped_storage(), f"_share_{cache.device.type}_")())


def opened(memory: Shared, layout: CacheLayout, blocks: int, device: torch.device) -> KVCache:
    """A cache in memory that another process has made.

    Args:
        memory: What that process had from `shared`.
        layout: Of this cache.
        blocks: It has.
        device: Where it lies.

    Raises:
        OSError: The memory cannot be mapped.
    """
    size = blocks * layout.bytes_per_block
    if isinstance(memory, SharedFile):
        return KVCache(layout, blocks, device, Memory(mapped(memory.file, size), memory.file))
    torch.get_device_module(device).set_device(device)  # a handle cannot be opened before the device is
    storage = getattr(torch.UntypedStorage, f"_new_shared_{device.type}")(*msgspec.structs.astuple(memory))
    data = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
    return KVCache(layout, blocks, device, Memory(data, None))


def _devices(device: torch.device, ranks: int) -> list[torch.device]:
    if device.type == "cpu" and CAN_SHARE:
        return [device] * ranks
    if not hasattr(torch.UntypedStorage, f"_share_{device.type}_"):  # an older torch_npu has it not
        raise UsageError(
            f"--tensor-parallel-size {ranks}: processes of this system cannot share memory on {device.type}; use 1"
        )
    count = torch.get_device_module(device).device_count()
    if count < ranks:
        raise UsageError(f"--tensor-parallel-size {ranks}: only {count} devices are visible; choose at most {count}")
    return [torch.device(device.type, rank) for rank in range(ranks)]
