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


class SharedCuda(msgspec.Struct, frozen=True, tag=True):
    """CUDA's handle on memory of another process, in the order of torch's own fields."""

    device: int
    handle: bytes
    size: int
    offset: int
    counter: bytes
    counter_offset: int
    event: bytes
    event_needed: bool


Shared = SharedFile | SharedCuda


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

    That of CUDA has not been run yet.
    """
    if cache.memory.file is not None:
        return SharedFile(cache.memory.file)
    return SharedCuda(*cache.memory.data.untyped_storage()._share_cuda_())  # type: ignore[no-untyped-call]


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
    storage = torch.UntypedStorage._new_shared_cuda(*msgspec.structs.astuple(memory))
    data = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
    return KVCache(layout, blocks, device, Memory(data, None))


def _devices(device: torch.device, ranks: int) -> list[torch.device]:
    if device.type == "cpu" and CAN_SHARE:
        return [device] * ranks
    if device.type != "cuda":
        raise UsageError(
            f"--tensor-parallel-size {ranks}: processes of this system cannot share memory on {device.type}; use 1"
        )
    count = torch.cuda.device_count()
    if count < ranks:
        raise UsageError(f"--tensor-parallel-size {ranks}: only {count} devices are visible; choose at most {count}")
    return [torch.device("cuda", rank) for rank in range(ranks)]
