"""Attention over paged blocks: what the engine hands the decoder as its attention context.

A batch is a row of chunks, one per sequence, laid end to end: a whole prompt, a piece of one, or a single new token.
Each chunk attends to its own sequence alone, so a step costs what its sequences hold, not what the longest one would.

Shapes: T tokens of all chunks, H query heads, K key/value heads, D head dimension, S tokens a sequence holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.kv.cache import KVCache


@dataclass(frozen=True)
class Chunk:
    """New tokens of one sequence in a batch."""

    blocks: Sequence[int]
    """The sequence's block table."""
    start: int
    """Tokens of the sequence that are in the cache already."""
    count: int
    """New tokens; their keys and values are written by the batch."""

    @property
    def stop(self) -> int:
        """Tokens the sequence holds after the batch."""
        return self.start + self.count


class PagedContext:
    """Positions, slots and block tables of one batch; satisfies the decoder's `AttentionContext`."""

    def __init__(self, cache: KVCache, chunks: Sequence[Chunk]) -> None:
        device = cache.device
        self._cache = cache
        self._chunks = chunks
        self._positions = torch.cat([torch.arange(c.start, c.stop, device=device) for c in chunks])
        self._slots = torch.cat([cache.slots(c.blocks, c.start, c.stop) for c in chunks])
        used = [c.blocks[: -(-c.stop // cache.layout.block_size)] for c in chunks]
        self._tables = [torch.tensor(blocks, device=device) for blocks in used]
        self._masks = [_causal_mask(c, device) for c in chunks]

    @property
    def positions(self) -> Tensor:
        """Position of every token in its own sequence, int64 [T]."""
        return self._positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write `k` and `v` [T, K, D] into the blocks, then attend from `q` [T, H, D]; returns [T, H, D]."""
        self._cache.write(layer, self._slots, k, v)
        queries = torch.split(q, [chunk.count for chunk in self._chunks])
        return torch.cat([self._attend_one(layer, index, rows) for index, rows in enumerate(queries)])

    def _attend_one(self, layer: int, index: int, q: Tensor) -> Tensor:
        chunk, mask = self._chunks[index], self._masks[index]
        k, v = self._cache.read(layer, self._tables[index], chunk.stop)
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None and chunk.count > 1,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out[0].transpose(0, 1)


def _causal_mask(chunk: Chunk, device: torch.device) -> Tensor | None:
    """What new token i may see, bool [count, stop]; None where the kernel needs none.

    A lone token sees everything, and a chunk from position 0 is plainly causal.
    """
    if chunk.count == 1 or chunk.start == 0:
        return None
    return torch.ones(chunk.count, chunk.stop, dtype=torch.bool, device=device).tril(chunk.start)
