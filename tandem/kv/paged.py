"""Attention over paged blocks: what the engine hands the decoder as its attention context.

A batch is a row of chunks, one per sequence, laid end to end: a whole prompt, a piece of one, or a single new token.
Each chunk attends to its own sequence alone, so a step costs what its sequences hold, not what the longest one would.

Shapes: T tokens of all chunks, H query heads, K key/value heads, D head dimension, R numbers of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.kernels.attention import attend
from tandem.kernels.latent import Latent
from tandem.kv.cache import KVCache

EXPANDED_FROM = 128
"""New tokens of a chunk from which expanding every cached latent once costs less than absorbing every query.

With DeepSeek's sizes, and for each head, a query costs 131 thousand multiplications to absorb and 832 more for every
token it sees; a cached token costs 131 thousand to expand. The two are even at 158 new tokens of a long sequence, and
earlier in short ones: a whole prompt is always expanded.
"""

LONGEST_EXPANDED = 16384
"""Tokens beyond which latents are not expanded: with DeepSeek's sizes these take 1.3 GB in 16 bits."""


@dataclass(frozen=True)
class Chunk:
    """New tokens of one sequence in a batch."""

    blocks: Sequence[int]
    """The sequence's block table."""
    start: int
    """Tokens of the sequence that are in the cache already."""
    count: int
    """New tokens; their keys and values are written by the batch."""
    prompt: int
    """Tokens of the sequence's prompt, which some rotary scalings go by."""

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
        self._counts = [chunk.count for chunk in chunks]
        self._positions = torch.cat([torch.arange(c.start, c.stop, device=device) for c in chunks])
        self._slots = torch.cat([cache.slots(c.blocks, c.start, c.stop) for c in chunks])
        used = [c.blocks[: -(-c.stop // cache.layout.block_size)] for c in chunks]
        self._tables = [torch.tensor(blocks, device=device) for blocks in used]

    @property
    def positions(self) -> Tensor:
        """Position of every token in its own sequence, int64 [T]."""
        return self._positions

    @property
    def prompts(self) -> Tensor:
        """Length of the prompt of every token's sequence, int64 [T]."""
        lengths = torch.tensor([chunk.prompt for chunk in self._chunks], device=self._cache.device)
        return lengths.repeat_interleave(torch.tensor(self._counts, device=self._cache.device))

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None, slopes: Tensor | None
    ) -> Tensor:
        """Write `k` and `v` [T, K, D] into the blocks, then attend from `q` [T, H, D]; returns [T, H, D]."""
        self._cache.write(layer, self._slots, k, v)

        def one(rows: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return _single(rows, keys, values, scale=scale, window=window, slopes=slopes)

        return self._each(layer, q, one)

    def attend_latent(self, layer: int, q: Tensor, latents: Tensor, by: Latent) -> Tensor:
        """Write `latents` [T, R] into the blocks, then attend from `q` [T, H, D]; returns [T, H, Dv]."""
        self._cache.write(layer, self._slots, latents.unsqueeze(-2))

        def one(rows: Tensor, seen: Tensor) -> Tensor:
            if len(rows) >= min(EXPANDED_FROM, len(seen)) and len(seen) <= LONGEST_EXPANDED:
                return _single(rows, *by.expand(seen.squeeze(-2)), scale=by.scale)
            return by.values(_single(by.absorb(rows), seen, seen, scale=by.scale))

        return self._each(layer, q, one)

    def _each(self, layer: int, q: Tensor, one: Callable[..., Tensor]) -> Tensor:
        """Every chunk's rows of `q` with the planes of its own sequence."""
        out = []
        for chunk, table, rows in zip(self._chunks, self._tables, torch.split(q, self._counts), strict=True):
            out.append(one(rows, *self._cache.read(layer, table, chunk.stop)))
        return torch.cat(out)


def _single(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None = None, slopes: Tensor | None = None
) -> Tensor:
    """One sequence: [T, H, D], [S, K, D], [S, K, Dv] -> [T, H, Dv]."""
    return attend(q[None], k[None], v[None], scale=scale, window=window, slopes=slopes)[0]
