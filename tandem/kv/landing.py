"""Where the bytes of one part of the heads arrive on the puller's side, and how they get from there to every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from tandem.kv.cache import KVCache
from tandem.kv.pieces import Source, by_head, rows
from tandem.kv.shards import Shards


@dataclass(frozen=True)
class Landing:
    """Room for some blocks of one source."""

    data: Tensor
    """uint8 [blocks, bytes per block of the source]."""
    places: Sequence[int]
    """Each block's place in `data`."""
    rank: int | None
    """The puller's rank whose cache `data` is; None if the blocks are only staged there."""

    @classmethod
    def direct(
        cls, shards: Shards, source: Source, blocks: Sequence[int], suits: Callable[[KVCache], bool]
    ) -> Landing | None:
        """`blocks` of a rank that holds the same heads, if there is one whose cache suits."""
        for piece in source.pieces:
            cache = shards.caches[piece.target]
            if piece.whole and suits(cache):
                return cls(rows(cache), blocks, piece.target)
        return None

    def copies(self, shards: Shards, source: Source, blocks: Sequence[int]) -> Iterator[Callable[[], object]]:
        """The copies that bring what arrived to `blocks` of all other ranks it is for."""
        data = by_head(self.data, shards, len(source.heads))
        for piece in source.pieces:
            if piece.target == self.rank:
                continue
            cache = shards.caches[piece.target]
            target = by_head(rows(cache), shards, cache.layout.kv_heads)
            for place, block in zip(self.places, blocks, strict=True):
                yield partial(target[block][:, piece.put].copy_, data[place][:, piece.take])


def source_bytes(shards: Shards, source: Source) -> int:
    """Bytes of one of the source's blocks."""
    return shards.layout.bytes_per_block // shards.layout.kv_heads * len(source.heads)
