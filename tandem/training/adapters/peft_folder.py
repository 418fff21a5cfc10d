"""PEFT's adapter folders, put on a decoder and written from one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.shapes import Shape, parameter_shapes
from tandem.errors import ModelFolderError
from tandem.files import json_bytes, whole_folder
from tandem.model.decoder import Decoder
from tandem.model.folder import unwritable
from tandem.parallel.rows import keep_own, own_part
from tandem.training.adapters.factors import Factors, fused
from tandem.training.adapters.layers import Strength
from tandem.training.adapters.lora import factors_of, put_on
from tandem.training.adapters.peft_config import FILE, PeftConfig, peft_fields
from tandem.training.adapters.peft_reading import TENSORS, Adapter, read_adapter
from tandem.training.adapters.targets import places

PREFIX = "base_model.model."
PARTS = ("gate", "up", "down")
"""Of stacked experts."""
EMBEDDING = ("embedding.weight",)
ENDS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
"""Of the names of A and B: of a linear layer, and of the embedding."""


def load_adapter(decoder: Decoder, folder: Path, dropout: float = 0.0, seed: int = 0) -> None:
    """Freeze a decoder and put an adapter folder's factors on it; the folder's own dropout was its training's.

    Raises:
        ModelFolderError: As `read_adapter`, or the adapter is another base model's.
        RecipeError: As `apply_lora`.
    """
    adapter = read_adapter(folder, decoder.config)
    put_on(decoder, {name: _with_dropout(one.strength, dropout) for name, one in adapter.factors.items()}, seed)
    fill_from(adapter, decoder, folder)


def fill_from(adapter: Adapter, decoder: Decoder, folder: Path) -> None:
    """Copy an adapter's values into a decoder's factors; where they are sharded, this rank's rows.

    Args:
        adapter: What was read.
        decoder: Has its base's weights, and factors of the adapter's shapes.
        folder: Where the adapter lies, for messages.

    Raises:
        ModelFolderError: It came with other base weights than these.
    """
    for name, whole in adapter.beside.items():
        own = own_part(decoder.get_parameter(name))
        require_same_base(name, whole[own.rows.start : own.rows.stop], own.tensor, folder)
    for name, one in adapter.factors.items():
        for factor, value in zip(factors_of(decoder, name), (one.a, one.b), strict=True):
            keep_own(factor, value)


def save_factors(config: ModelConfig, factors: Mapping[str, Factors], folder: Path, base: str | None = None) -> None:
    """Write adapters as PEFT does.

    Args:
        config: Of the model.
        factors: By our parameters' names, in host memory.
        folder: Must not exist.
        base: Name or path of the base model, for whoever loads the adapter.

    Raises:
        ModelFolderError: Something of that name exists, or the system does not let it be written.
    """
    if folder.exists():
        raise ModelFolderError(f"{folder}: exists already; choose another folder or remove it")
    written = _written(config, factors)
    modules = {place.module: place.ours == EMBEDDING for place in places(config)}
    tensors = {
        f"{PREFIX}{module}.{end}": tensor.contiguous()
        for module, one in written.items()
        for end, tensor in zip(ENDS[modules[module]], (one.a, one.b), strict=True)
    }
    fields = peft_fields(_summary({module: one.strength for module, one in written.items()}), written, modules, base)
    try:
        with whole_folder(folder) as part:
            (part / FILE).write_bytes(json_bytes(fields))
            # Not by its own `save_file`, which lets nobody else read what it wrote, whatever the umask says.
            (part / TENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))
    except (OSError, SafetensorError) as error:
        raise unwritable(folder, error if isinstance(error, OSError) else OSError(0, str(error))) from None


def require_same_base(name: str, saved: Tensor, own: Tensor, folder: Path) -> None:
    """Refuse an adapter that came with other base weights than these.

    Raises:
        ModelFolderError: They differ.
    """
    if saved.shape != own.shape or not torch.equal(saved.to(own.dtype), own.detach().cpu()):
        raise ModelFolderError(f"{folder}: holds another {name} than the base model; give the base it was trained on")


def _with_dropout(strength: Strength, dropout: float) -> Strength:
    return Strength(rank=strength.rank, alpha=strength.alpha, rslora=strength.rslora, dropout=dropout)


def _written(config: ModelConfig, factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Module name -> the pair that the file gets."""
    shapes = parameter_shapes(config)
    own = _companions(factors, shapes) | dict(factors)
    written = {}
    for place in places(config):
        parts = [_of_expert(own.get(name), place.expert) for name in place.ours]
        if any(part is not None for part in parts):
            rows = [shapes[name][-2] for name in place.ours]
            written[place.module] = parts[0] if len(parts) == 1 and parts[0] else fused(parts, rows)
    return written


def _companions(own: Mapping[str, Factors], shapes: Mapping[str, Shape]) -> dict[str, Factors]:
    """Factors that add nothing: PEFT on transformers 5 reads an expert's gate and up with its other matrices only."""
    found = {}
    for name, one in own.items():
        stem, _, part = name.rpartition(".")
        for other in PARTS if part in PARTS[:2] else ():
            stack, rows, columns = shapes[f"{stem}.{other}"]
            rank = one.strength.rank
            nothing = Factors(one.a.new_zeros(stack, rank, columns), one.a.new_zeros(stack, rows, rank), one.strength)
            found[f"{stem}.{other}"] = nothing
    return found


def _of_expert(whole: Factors | None, expert: int | None) -> Factors | None:
    return whole if whole is None or expert is None else Factors(whole.a[expert], whole.b[expert], whole.strength)


def _summary(adapted: Mapping[str, Strength]) -> PeftConfig:
    """The strength most modules have, and patterns for the others."""
    usual = Counter(adapted.values()).most_common(1)[0][0]
    return PeftConfig(
        rank=usual.rank,
        alpha=usual.alpha,
        dropout=usual.dropout,
        rslora=usual.rslora,
        ranks={name: one.rank for name, one in adapted.items() if one.rank != usual.rank},
        alphas={name: one.alpha for name, one in adapted.items() if one.alpha != usual.alpha},
    )
