"""What ranks hold of a trained decoder, brought together on the leader for an export, one tensor at a time.

All ranks go through the same tensors in the same order. The leader has one of them whole in its host memory, and writes
it; the others send their rows and keep nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.catalogue.generation import GenerationDefaults
from tandem.model.decoder import Decoder
from tandem.model.families.family import Rows
from tandem.model.folder import save_read
from tandem.parallel.rows import own_part, rows_of
from tandem.parallel.world import World, named
from tandem.training.adapters.factors import Factors
from tandem.training.adapters.layers import Strength
from tandem.training.adapters.lora import factors_of, strengths


@dataclass(frozen=True)
class Gathering:
    """The parameters of a decoder that lies on all ranks."""

    decoder: Decoder
    world: World

    def save(
        self, dtype: torch.dtype, folder: Path, generation: GenerationDefaults, tokenizer_files: Mapping[str, bytes]
    ) -> None:
        """Write the merged model as `model.folder.save` does, in a dtype; the folder is the leader's.

        Raises:
            ModelFolderError: As `model.folder.save`.
            ProcessError: A rank is gone.
        """
        target = folder if self.world.leads else None
        save_read(self.decoder.config, dtype, self.merged, target, generation, tokenizer_files)

    def merged(self, rows: Rows) -> Tensor:
        """A parameter, or one expert of it, with what an adapter adds to it; on other ranks than the leader no numbers.

        Raises:
            ProcessError: A rank is gone.
        """
        base = self._whole(self.decoder.get_parameter(rows.name), rows.expert)
        strength = self._strengths.get(rows.name)
        if strength is None:
            return base
        a, b = (self._whole(factor, rows.expert) for factor in factors_of(self.decoder, rows.name))
        if not self.world.leads:
            return base
        delta = b @ a * strength.scale
        return base + (delta.T if rows.name == "embedding.weight" else delta)

    def factors(self) -> dict[str, Factors]:
        """All adapters, whole, by the names of their matrices; on other ranks than the leader without numbers."""
        found = {}
        for name, strength in self._strengths.items():
            a, b = (self._whole(factor) for factor in factors_of(self.decoder, name))
            found[name] = Factors(a, b, strength)
        return found

    @cached_property
    def _strengths(self) -> dict[str, Strength]:
        return strengths(self.decoder)

    def _whole(self, tensor: Tensor, expert: int | None = None) -> Tensor:
        if expert is None:
            return collected(tensor, range(len(tensor)), self.world)
        rows = collected(tensor, range(expert, expert + 1), self.world)
        return rows.reshape(tensor.shape[1:]) if self.world.leads else rows


@torch.no_grad()
def collected(tensor: Tensor, wanted: range, world: World) -> Tensor:
    """Consecutive rows of a tensor in the leader's host memory; no rows on other ranks.

    All ranks call this together. Every row travels once, from its holder to the leader.

    Raises:
        ProcessError: A rank is gone.
    """
    own = own_part(tensor)
    if not hasattr(tensor, "device_mesh"):
        return own.tensor[wanted.start : wanted.stop].cpu()
    out = own.tensor.new_empty((len(wanted) if world.leads else 0, *tensor.shape[1:]))
    for rank in range(world.ranks):
        held = rows_of(len(tensor), rank, world.ranks)
        begin, end = max(held.start, wanted.start), min(held.stop, wanted.stop)
        if begin < end and world.rank in (0, rank):
            rows = own.tensor[begin - held.start : end - held.start]
            _hand_over(rows, out[begin - wanted.start : end - wanted.start], rank, world)
    return out.cpu()


def _hand_over(rows: Tensor, target: Tensor, holder: int, world: World) -> None:
    """From the holder's `rows` to the leader's `target`; each looks at its own of them."""
    with named("gathering the model"):
        if holder == 0:
            target.copy_(rows)
        elif world.leads:
            dist.recv(target, src=holder)
        else:
            dist.send(rows, dst=0)
