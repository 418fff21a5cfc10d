"""Blocks as bytes on the connection itself: works between any two hosts.

After a Ready follow, for each part of the heads in rank order, the named blocks' bytes, and then one checksum of all
(xxh3, 64 bits, big-endian), which both sides compute as the bytes pass. Where a part is all that one rank of the puller
holds, its bytes are received at their place; otherwise they are staged and cut by heads. So they are on a device,
through pinned memory; that is complete but has not run on one yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from xxhash import xxh3_64

from tandem.errors import TransferError
from tandem.kv.cache import KVCache
from tandem.kv.copies import SLICE
from tandem.kv.landing import Landing, source_bytes
from tandem.kv.messages import Granted, Ready
from tandem.kv.pieces import Source, holders, rows, runs, sources
from tandem.kv.shards import Shards
from tandem.kv.wire import Wire

SHORT = 64 * 1024
"""Bytes under which a run of blocks is not worth a system call of its own."""


class TcpSender:
    """The holder's side."""

    files: Sequence[int] = ()
    offer = b""

    def __init__(self, shards: Shards) -> None:
        held = holders(shards.layout.kv_heads, len(shards.caches))
        self._caches = [shards.caches[rank] for rank in held.values()]

    async def send(self, wire: Wire, blocks: Sequence[int]) -> None:
        """Tell of blocks and send their bytes."""
        await wire.send(Ready(list(blocks)))
        digest = xxh3_64()
        await wire.send_all((view for cache in self._caches for view in _host_views(cache, blocks)), digest.update)
        await wire.send_bytes(digest.digest())


class TcpReceiver:
    """The puller's side."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def open(self, granted: Granted, files: Sequence[int]) -> TcpIncoming:
        """Begin a pull.

        Raises:
            TransferError: The holder cannot have that many ranks.
        """
        return TcpIncoming(self._shards, sources(self._shards, granted.ranks))

    def close(self) -> None:
        """Nothing is kept."""


class TcpIncoming:
    """One pull."""

    def __init__(self, shards: Shards, needed: Sequence[Source]) -> None:
        self._shards = shards
        self._sources = needed

    async def receive(self, wire: Wire, ready: Ready, blocks: Sequence[int]) -> None:
        """Take the bytes that follow a Ready into `blocks`.

        Raises:
            TransferError: They were damaged on the way.
        """
        digest = xxh3_64()
        await wire.receive_all((view for one in self._sources for view in self._landed(one, blocks)), digest.update)
        if await wire.receive_bytes(digest.digest_size) != digest.digest():
            raise TransferError("bytes were damaged on the way: their checksum is wrong")

    def close(self, *, whole: bool) -> None:
        """Nothing is kept."""

    def _landed(self, source: Source, blocks: Sequence[int]) -> Iterator[memoryview]:
        """Room for one part's bytes; once a view is full, it is copied to where else it belongs."""
        landing = Landing.direct(self._shards, source, blocks, lambda cache: _in_reach(cache, blocks))
        if landing is not None:
            yield from _views(landing.data, landing.places)
            _carry_out(landing.copies(self._shards, source, blocks))
            return
        ours = self._shards.caches[source.pieces[0].target]
        for some in _slices(blocks, source_bytes(self._shards, source)):
            landing = Landing(_staged(some, source_bytes(self._shards, source), ours), range(len(some)), None)
            yield from _views(landing.data, landing.places)
            _carry_out(landing.copies(self._shards, source, some))


def _carry_out(copies: Iterator[Callable[[], object]]) -> None:
    for copy in copies:
        copy()


def _slices(blocks: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """As many blocks at once as are staged."""
    at_once = max(1, SLICE // size)
    return (blocks[start : start + at_once] for start in range(0, len(blocks), at_once))


def _in_reach(cache: KVCache, blocks: Sequence[int]) -> bool:
    """Whether blocks can be received at, or sent from, their place without a system call for each few bytes."""
    if cache.device.type != "cpu":
        return False
    count = sum(1 for _ in runs(blocks, most=len(blocks)))
    return count == 1 or len(blocks) * cache.layout.bytes_per_block >= count * SHORT


def _views(data: Tensor, places: Sequence[int]) -> list[memoryview]:
    """Rows of `data`, those that lie together as one."""
    spans = [(places[start], stop - start) for start, stop in runs(places, most=len(places))]
    return [data[first : first + count].view(-1).numpy().data for first, count in spans]


def _staged(blocks: Sequence[int], size: int, cache: KVCache) -> Tensor:
    """Room on the host for blocks on their way from or to a cache: uint8 [blocks, size]."""
    return torch.empty((len(blocks), size), dtype=torch.uint8, pin_memory=cache.device.type != "cpu")


def _host_views(cache: KVCache, blocks: Sequence[int]) -> Iterator[memoryview]:
    """The bytes of blocks in order, where they are if possible."""
    if _in_reach(cache, blocks):
        yield from _views(rows(cache), blocks)
        return
    for some in _slices(blocks, cache.layout.bytes_per_block):
        data = _staged(some, cache.layout.bytes_per_block, cache)
        data.copy_(rows(cache).index_select(0, torch.tensor(some, device=cache.device)))
        yield data.view(-1).numpy().data
