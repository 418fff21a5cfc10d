"""A model's weights written as safetensors: one file, or shards of a limited size and their index.

Tensors go into the file one by one, each read when its turn comes and let go of then: from the parameters' own memory,
or from all the ranks that hold a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tandem.files import json_bytes
from tandem.model.families.family import Rows, TensorMap
from tandem.model.weights.dtypes import STORED_DTYPES
from tandem.model.weights.safetensors_file import head

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Outgoing:
    """One tensor of the checkpoint to be."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Iterable[Tensor]
    """One below the other; read while one goes over them, which is done once."""

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


Read = Callable[[Rows], Tensor]
"""A parameter, or one expert of it -> its numbers."""


def outgoing(layout: TensorMap, like: Mapping[str, Tensor], read: Read) -> list[Outgoing]:
    """Parameters as a checkpoint of this layout holds them.

    Args:
        layout: Of the checkpoint.
        like: Tensors of the parameters' shapes and dtypes, which may have no numbers.
        read: Gets the numbers.
    """
    tensors = []
    for theirs, rows in layout.items():
        own = [taken(like, one) for one in rows]
        shape = (sum(len(part) for part in own), *own[0].shape[1:])
        tensors.append(Outgoing(theirs, shape, own[0].dtype, map(read, rows)))
    return tensors


def taken(parameters: Mapping[str, Tensor], rows: Rows) -> Tensor:
    """A parameter, or one expert of it; a view."""
    whole = parameters[rows.name]
    return whole if rows.expert is None else whole[rows.expert]


def write_shards(folder: Path, tensors: list[Outgoing], max_shard_bytes: int) -> None:
    """Write weight files into an existing folder.

    Args:
        folder: Gets `model.safetensors`, or numbered shards and `model.safetensors.index.json`.
        tensors: In the order they are to have.
        max_shard_bytes: Tensors that fill a shard beyond this go into the next one; a single larger tensor has its own.

    Raises:
        OSError: The disk is full or refuses.
    """
    shards = list(_shards(tensors, max_shard_bytes))
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    weight_map = {one.name: name for name, shard in zip(names, shards, strict=True) for one in shard}
    total = sum(one.size for one in tensors)
    (folder / INDEX).write_bytes(json_bytes({"metadata": {"total_size": total}, "weight_map": weight_map}))


def read_through(tensors: list[Outgoing], max_shard_bytes: int) -> None:
    """Read what `write_shards` reads, in its order, and write nothing."""
    for shard in _shards(tensors, max_shard_bytes):
        for one in _aligned(shard):
            for _ in one.parts:
                pass


def write_file(path: Path, tensors: list[Outgoing]) -> None:
    """Write one safetensors file, readable to whom the umask lets it be.

    Raises:
        OSError: The disk is full or refuses.
    """
    aligned = _aligned(tensors)
    with path.open("wb") as file:
        file.write(head({one.name: (STORED_DTYPES[one.dtype], one.shape) for one in aligned}))
        for one in aligned:
            for part in one.parts:
                file.write(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _aligned(tensors: list[Outgoing]) -> list[Outgoing]:
    return sorted(tensors, key=lambda one: -one.dtype.itemsize)


def _shards(tensors: list[Outgoing], most: int) -> Iterator[list[Outgoing]]:
    shard: list[Outgoing] = []
    filled = 0
    for one in tensors:
        if shard and filled + one.size > most:
            yield shard
            shard, filled = [], 0
        shard.append(one)
        filled += one.size
    yield shard
