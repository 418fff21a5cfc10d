"""Which bytes of a holder's ranks belong where on a puller's ranks.

    holder, 2 ranks   [0 1 2 3] [4 5 6 7]      heads
    puller, 4 ranks   [0 1] [2 3] [4 5] [6 7]  four pieces, each half a source block

With more ranks than heads several ranks hold the same head: one of the holder's is asked, all of the puller's get it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tandem.errors import TransferError, UsageError
from tandem.kv.cache import KVCache
from tandem.kv.shards import Shards
from tandem.parallel.split import kv_part

Bytes = NDArray[np.uint8]

A = TypeVar("A", Tensor, Bytes)


@dataclass(frozen=True)
class Piece:
    """Heads that go from one rank of the holder to one of the puller."""

    target: int
    """The puller's rank."""
    take: slice
    """Where they lie among the source's heads."""
    put: slice
    """Where they lie among the target's heads."""
    whole: bool
    """They are all heads of both: a block is one run of bytes."""


@dataclass(frozen=True)
class Source:
    """One rank of the holder whose blocks are needed."""

    rank: int
    heads: range
    pieces: tuple[Piece, ...]
    """At least one."""


def sources(shards: Shards, ranks: int) -> list[Source]:
    """What the puller with `shards` needs from a holder with `ranks` ranks: every head from one of them.

    Raises:
        TransferError: That holder cannot have this model.
    """
    held = holders(shards.layout.kv_heads, ranks)
    return [Source(rank, heads, tuple(_pieces(shards, heads))) for heads, rank in held.items()]


def holders(kv_heads: int, ranks: int) -> dict[range, int]:
    """The first rank that holds each part of the heads, in order.

    Raises:
        TransferError: The heads cannot be shared out to that many ranks.
    """
    held: dict[range, int] = {}
    try:
        for rank in range(ranks):
            held.setdefault(kv_part(kv_heads, rank, ranks), rank)
    except UsageError as error:
        raise TransferError(f"the prefill instance says it has {ranks} ranks, which do not fit: {error}") from None
    return held


def _pieces(shards: Shards, heads: range) -> Iterator[Piece]:
    for rank in range(len(shards.caches)):
        ours = shards.heads(rank)
        start, stop = max(heads.start, ours.start), min(heads.stop, ours.stop)
        if start < stop:
            yield Piece(
                target=rank,
                take=slice(start - heads.start, stop - heads.start),
                put=slice(start - ours.start, stop - ours.start),
                whole=heads == ours,
            )


def rows(cache: KVCache) -> Tensor:
    """A cache's memory by block: uint8 [N, bytes per block]."""
    return cache.memory.data.view(-1, cache.layout.bytes_per_block)


def by_head(rows: A, shards: Shards, heads: int) -> A:
    """Blocks of a rank with that many heads, uint8 [N, L * P * S, K, bytes per head], of their bytes by block."""
    layout = shards.layout
    return rows.reshape(rows.shape[0], -1, heads, layout.head_dim * layout.torch_dtype.itemsize)


def runs(*ids: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of places, of at most `most`, over which every list of block ids counts up by one."""
    start = 0
    for place in range(1, len(ids[0]) + 1):
        goes_on = place < len(ids[0]) and all(some[place] == some[place - 1] + 1 for some in ids)
        if not goes_on or place - start == most:
            yield start, place
            start = place
