"""LoRA on a decoder: put on, found, saved, merged.

`apply_lora` comes before anything that wraps or shards, on the meta device or where the weights are. Afterwards only
the factors learn, so optimizer and checkpoints hold them alone. The rest is the base model's: a run notes its
`model.folder.fingerprint` among its inputs, so that factors are never put on another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tandem.model.block import Block
from tandem.model.decoder import Decoder
from tandem.parallel.rows import keep_own
from tandem.training.adapters.dropout import key_of
from tandem.training.adapters.layers import Adapted, LoraBlock, LoraLinear, Strength, attach, factor_names, merge_layer
from tandem.training.adapters.targets import refuse_dropout, resolved
from tandem.training.settings.config import LoraConfig


def apply_lora(decoder: Decoder, config: LoraConfig, seed: int) -> None:
    """Freeze the decoder and put factors beside the targets: A drawn by (seed, its name), B zero, so nothing changes.

    On the meta device the factors stay empty; `fill_factors` fills them once they have memory.

    Raises:
        RecipeError: As `resolved`.
    """
    put_on(decoder, dict.fromkeys(resolved(decoder.config, config), strength_of(config)), seed)
    if not decoder.norm.weight.is_meta:
        fill_factors(decoder, initial_factors(decoder, seed))


def strength_of(config: LoraConfig) -> Strength:
    """What every target gets."""
    return Strength(rank=config.rank, alpha=config.alpha, rslora=config.rslora, dropout=config.dropout)


def put_on(decoder: Decoder, strengths: Mapping[str, Strength], seed: int = 0) -> None:
    """Freeze the decoder and put empty factors beside parameters, by their names; raises as `refuse_dropout`."""
    refuse_dropout(decoder.config, (name for name, strength in strengths.items() if strength.dropout))
    decoder.requires_grad_(False)
    for name, strength in strengths.items():
        module, part = _holder(decoder, name)
        attach(module, part, strength)
        if strength.dropout:
            assert isinstance(module, LoraLinear), "all others are refused"
            module.key = key_of(seed, name)
    for block in decoder.layers:
        block.__class__ = LoraBlock


def initial_factors(decoder: Decoder, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Name and initial value of every factor, fp32 on the CPU, whole: the same for any number of ranks.

    A is uniform within 1/sqrt(in), as PEFT draws it, and B zero; of an embedding, A is zero and B normal, likewise.
    """
    for name, module in _adapted(decoder):
        table = isinstance(module, nn.Embedding)
        for part in module.strengths:
            for factor, values in zip(factor_names(part), module.factors(part), strict=True):
                drawn = factor.endswith("a") != table
                full = f"{name}.{factor}"
                yield full, _drawn(full, values.shape, seed, table=table) if drawn else torch.zeros(values.shape)


def fill_factors(decoder: Decoder, values: Iterable[tuple[str, Tensor]]) -> None:
    """Copy whole values into the decoder's factors of these names; where they are sharded, this rank's rows."""
    for name, value in values:
        keep_own(decoder.get_parameter(name), value)


def merge(decoder: Decoder) -> None:
    """Add the adapters to the matrices and take them off: a plain decoder again, whose parameters stay frozen.

    In fp32 the logits stay the same but for rounding (1e-5); in bf16 the sums are rounded to bf16, which loses what
    is smaller than 1/256 of a weight. Not for sharded parameters.
    """
    for _, module in _adapted(decoder):
        assert isinstance(module, nn.Module)
        merge_layer(module)
    for block in decoder.layers:
        block.__class__ = Block


def strengths(decoder: Decoder) -> dict[str, Strength]:
    """Adapted parameter -> how."""
    return {f"{name}.{part}": one for name, module in _adapted(decoder) for part, one in module.strengths.items()}


def factors_of(decoder: Decoder, name: str) -> tuple[Tensor, Tensor]:
    """A and B beside the parameter of this name."""
    module, part = _holder(decoder, name)
    assert isinstance(module, Adapted)
    return module.factors(part)


def _adapted(decoder: nn.Module) -> list[tuple[str, Any]]:
    """Name and layer, each of them an `Adapted` and an `nn.Module`."""
    return [(name, module) for name, module in decoder.named_modules() if isinstance(module, Adapted)]


def _holder(decoder: Decoder, name: str) -> tuple[nn.Module, str]:
    path, _, part = name.rpartition(".")
    return decoder.get_submodule(path), part


def _drawn(name: str, shape: torch.Size, seed: int, *, table: bool) -> Tensor:
    generator = torch.Generator().manual_seed(key_of(seed, name))
    if table:
        return torch.randn(shape, generator=generator)
    return torch.rand(shape, generator=generator).sub_(0.5).mul_(2 / math.sqrt(shape[-1]))
