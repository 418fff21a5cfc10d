"""The memory that holds keys and values: one tensor, cut into blocks, written and read by slot.

    storage [N blocks][L layers][P planes][S tokens per block][K kv heads][D numbers per head]

The planes are keys and values; with latent attention there is one, of latents, and one "head". A block is one run of
bytes over all layers, so handing it to another instance is one copy.

Token t of a sequence with block table `b` lies in block `b[t // S]` at place `t % S`. `K` are the heads of one rank
where an instance has several (`parallel/split.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
import torch
from torch import Tensor

from tandem.catalogue.arithmetic import cache_shape
from tandem.catalogue.config import ModelConfig
from tandem.kv.memory import Memory, allocate
from tandem.parallel.split import kv_part


class CacheLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What a cache's bytes mean; two instances exchange blocks only when theirs are equal."""

    layers: int
    planes: int
    kv_heads: int
    head_dim: int
    dtype: str
    block_size: int

    @classmethod
    def of(cls, config: ModelConfig, dtype: str, block_size: int) -> CacheLayout:
        """The layout a model needs."""
        planes, heads, head_dim = cache_shape(config)
        return cls(
            layers=config.layers,
            planes=planes,
            kv_heads=heads,
            head_dim=head_dim,
            dtype=dtype,
            block_size=block_size,
        )

    def of_rank(self, rank: int, ranks: int) -> CacheLayout:
        """The layout of one rank's part.

        Raises:
            UsageError: The heads cannot be shared out.
        """
        return msgspec.structs.replace(self, kv_heads=len(kv_part(self.kv_heads, rank, ranks)))

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes over all layers and planes."""
        return self.layers * self.planes * self.kv_heads * self.head_dim * self.torch_dtype.itemsize

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one full block."""
        return self.bytes_per_token * self.block_size

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """[L, P, S, K, D]."""
        return self.layers, self.planes, self.block_size, self.kv_heads, self.head_dim

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


def compatibility_digest(layout: CacheLayout, *parts: str) -> str:
    """Hash of everything that must agree before blocks move: the layout and `parts` (model, weights, version)."""
    return blake2b(msgspec.json.encode((layout, parts)), digest_size=16).hexdigest()


class KVCache:
    """Keys and values of all sequences of one rank.

    Args:
        layout: Shapes and element type.
        blocks: Number of blocks.
        device: Where the memory lies. It is not cleared: a slot is always written before it is read.
        memory: `blocks * layout.bytes_per_block` bytes on `device`; allocated if not given.
    """

    def __init__(self, layout: CacheLayout, blocks: int, device: torch.device, memory: Memory | None = None) -> None:
        self.layout = layout
        self.memory = memory or allocate(blocks * layout.bytes_per_block, device)
        self.blocks = self.memory.data.view(layout.torch_dtype).view(blocks, *layout.block_shape)
        """[N, L, P, S, K, D]."""
        self._rows = self.blocks.view(-1, layout.kv_heads, layout.head_dim)
        self._planes = self.blocks.flatten(0, 2)

    @property
    def device(self) -> torch.device:
        """Where the memory lies."""
        return self.blocks.device

    def slots(self, blocks: Sequence[int], start: int, stop: int) -> Tensor:
        """Slots in layer 0 of tokens `start` to `stop` (exclusive) of a sequence with this table, int64 [stop - start].

        A slot is a row of [K, D]; `write` finds the other layers' and planes' from it.
        """
        size, planes = self.layout.block_size, self.layout.layers * self.layout.planes
        return torch.tensor(
            [blocks[t // size] * planes * size + t % size for t in range(start, stop)], device=self.device
        )

    def write(self, layer: int, slots: Tensor, *planes: Tensor) -> None:
        """Store one [T, K, D] for each plane of one layer in their slots [T]."""
        for plane, tokens in enumerate(planes, start=layer * self.layout.planes):
            self._rows.index_copy_(0, slots + plane * self.layout.block_size, tokens)

    def read(self, layer: int, blocks: Tensor, length: int) -> list[Tensor]:
        """Each plane [length, K, D] of one layer of a sequence, copied out of its blocks (int64)."""
        layout = self.layout
        first = blocks * (layout.layers * layout.planes) + layer * layout.planes
        return [self._planes.index_select(0, first + plane).flatten(0, 1)[:length] for plane in range(layout.planes)]
