"""A model's weights written as safetensors: one file, or shards of a limited size and their index.

Tensors go from the parameters' own memory into the file one by one; nothing is gathered first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tandem.files import json_bytes
from tandem.model.families.family import TensorMap
from tandem.model.weights.dtypes import STORED_DTYPES
from tandem.model.weights.safetensors_file import head

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Outgoing:
    """One tensor of the checkpoint to be."""

    name: str
    parts: tuple[Tensor, ...]
    """One below the other."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all parts together."""
        return (sum(len(part) for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.parts[0].dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(part.numel() * part.itemsize for part in self.parts)


def outgoing(layout: TensorMap, parameters: Mapping[str, Tensor]) -> list[Outgoing]:
    """Parameters as a checkpoint of this layout holds them; views, not copies."""
    tensors = []
    for theirs, rows in layout.items():
        whole = ((parameters[one.name].detach(), one.expert) for one in rows)
        tensors.append(Outgoing(theirs, tuple(part if expert is None else part[expert] for part, expert in whole)))
    return tensors


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


def write_file(path: Path, tensors: list[Outgoing]) -> None:
    """Write one safetensors file, readable to whom the umask lets it be.

    Raises:
        OSError: The disk is full or refuses.
    """
    aligned = sorted(tensors, key=lambda one: -one.dtype.itemsize)
    with path.open("wb") as file:
        file.write(head({one.name: (STORED_DTYPES[one.dtype], one.shape) for one in aligned}))
        for one in aligned:
            for part in one.parts:
                file.write(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


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
