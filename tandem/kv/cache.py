"""The memory that holds keys and values: one tensor, cut into blocks, written and read by slot.

    storage [L layers][P planes][N blocks][S tokens per block][K kv heads][D numbers per head]

The planes are keys and values; with latent attention there is one, of latents, and one "head".

Token t of a sequence with block table `b` lies in slot `b[t // S] * S + t % S`. A layer's plane is contiguous, so
reading one layer of one sequence is one gather of whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
import torch
from torch import Tensor

from tandem.catalogue.arithmetic import cache_shape
from tandem.catalogue.config import ModelConfig


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

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes over all layers and planes."""
        return self.layers * self.planes * self.kv_heads * self.head_dim * self.torch_dtype.itemsize

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one full block."""
        return self.bytes_per_token * self.block_size

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
    """Keys and values of all sequences of one instance.

    Args:
        layout: Shapes and element type.
        blocks: Number of blocks.
        device: Where the memory lies. It is not cleared: a slot is always written before it is read.
    """

    def __init__(self, layout: CacheLayout, blocks: int, device: torch.device) -> None:
        self.layout = layout
        shape = (layout.layers, layout.planes, blocks, layout.block_size, layout.kv_heads, layout.head_dim)
        self._storage = torch.empty(shape, dtype=layout.torch_dtype, device=device)

    @property
    def device(self) -> torch.device:
        """Where the memory lies."""
        return self._storage.device

    def slots(self, blocks: Sequence[int], start: int, stop: int) -> Tensor:
        """Slots of tokens `start` to `stop` (exclusive) of a sequence with this block table, int64 [stop - start]."""
        size = self.layout.block_size
        return torch.tensor([blocks[t // size] * size + t % size for t in range(start, stop)], device=self.device)

    def write(self, layer: int, slots: Tensor, *planes: Tensor) -> None:
        """Store one [T, K, D] for each plane of one layer in their slots [T]."""
        for plane, tokens in zip(self._storage[layer].flatten(1, 2), planes, strict=True):
            plane.index_copy_(0, slots, tokens)

    def read(self, layer: int, blocks: Tensor, length: int) -> list[Tensor]:
        """Each plane [length, K, D] of one layer of a sequence, copied out of its blocks (int64)."""
        return [plane.index_select(0, blocks).flatten(0, 1)[:length] for plane in self._storage[layer]]

    def export_tokens(self, blocks: Sequence[int], length: int) -> Tensor:
        """The first `length` tokens of a sequence as bytes, uint8 [L * P * length * K * D * item] on the CPU."""
        table = torch.tensor(blocks, device=self.device)
        tokens = self._storage.index_select(2, table).flatten(2, 3)[:, :, :length]
        return tokens.contiguous().cpu().view(torch.uint8).flatten()

    def import_tokens(self, blocks: Sequence[int], length: int, data: Tensor) -> None:
        """Store what `export_tokens` gave, `data` uint8 on the CPU, in blocks of this cache."""
        layout = self.layout
        shape = (layout.layers, layout.planes, length, layout.kv_heads, layout.head_dim)
        tokens = data.view(layout.torch_dtype).view(shape).to(self.device)
        self._storage.flatten(2, 3).index_copy_(2, self.slots(blocks, 0, length), tokens)
