"""What lies in PEFT's adapter folders, and which of our matrices it belongs to.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight              [r, in]
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight              [out, r]
    base_model.model.model.embed_tokens.lora_embedding_A                        [r, vocabulary]
    base_model.model.model.embed_tokens.lora_embedding_B                        [hidden, r]
    base_model.model.model.layers.0.block_sparse_moe.experts.0.w1.lora_A.weight one expert, as in transformers 4
    base_model.model.model.layers.0.mlp.experts.lora_A.weight                   a stack of transformers 5: down_proj,
    base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight        and within it gate_up_proj
    base_model.model.model.embed_tokens.base_layer.weight                       the base's own, which PEFT adds where
                                                                                the embedding or the head is adapted

Module names are those of the family's published layout (`model/families`). Source: PEFT 0.21,
`utils/save_and_load.py`, `tuners/lora/layer.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tandem.catalogue.config import ModelConfig, MoE
from tandem.catalogue.shapes import parameter_shapes
from tandem.errors import ModelFolderError
from tandem.model.weights.stored import printable
from tandem.training.adapters.factors import Factors, taken_apart, unstacked_by_expert
from tandem.training.adapters.layers import Strength
from tandem.training.adapters.peft_config import PeftConfig, read_peft_config
from tandem.training.adapters.targets import Place, places, refuse_tables, stacked_places

TENSORS = "adapter_model.safetensors"
KEY = re.compile(r"(?:base_model\.model\.)?(.+?)\.(?:(lora_(?:embedding_)?[AB])(?:\.weight)?|(base_layer)\.weight)")


@dataclass(frozen=True)
class Adapter:
    """An adapter folder, understood for one model."""

    config: PeftConfig
    factors: dict[str, Factors]
    """By our parameters' names."""
    beside: dict[str, Tensor]
    """Base weights that the folder holds too; they must be the base's."""


def read_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """Read an adapter for a model of this configuration.

    Raises:
        ModelFolderError: A file is missing or broken, is no plain LoRA, or does not fit the model.
        RecipeError: It adapts a table that cannot be merged.
    """
    said = read_peft_config(folder)
    reading = _Reading(folder, config, said)
    for key, tensor in _tensors(folder).items():
        reading.take(key, tensor)
    factors = reading.factors()
    refuse_tables(config, factors)
    return Adapter(said, factors, reading.beside)


class _Reading:
    """The tensors of a folder, put in order one by one."""

    def __init__(self, folder: Path, config: ModelConfig, said: PeftConfig) -> None:
        self.beside: dict[str, Tensor] = {}
        self._folder = folder
        self._said = said
        self._shapes = parameter_shapes(config)
        mixture = config.feed_forward
        self._experts = mixture.experts if isinstance(mixture, MoE) else 0
        self._places = {place.module: place for place in (*places(config), *stacked_places(config))}
        self._pairs: dict[str, dict[str, Tensor]] = {}

    def take(self, key: str, tensor: Tensor) -> None:
        """One tensor by its name in the file."""
        found = KEY.fullmatch(key)
        if found is None:
            raise self._misfit(key, "is no tensor of a plain LoRA")
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            raise ModelFolderError(
                f"{self._folder / TENSORS}: {printable(key)} holds NaN, infinity or whole numbers; take the adapter of "
                "an earlier checkpoint"
            )
        module, kind, _ = found.groups()
        if kind is None:
            self.beside[self._place(module, key).ours[0]] = tensor
        else:
            self._pairs.setdefault(module, {})[kind[-1]] = tensor

    def factors(self) -> dict[str, Factors]:
        """Everything that was taken, by our names."""
        if not self._pairs:
            raise ModelFolderError(f"{self._folder / TENSORS}: holds no adapter; copy it again")
        experts: dict[str, dict[int, Factors]] = {}
        found: dict[str, Factors] = {}
        for module, pair in self._pairs.items():
            place = self._place(self._spelled(module), module)
            for name, one in self._parts(place, self._whole(place, pair)).items():
                if place.expert is None:
                    found[name] = one
                else:
                    experts.setdefault(name, {})[place.expert] = one
        found |= {name: self._stack(name, each) for name, each in experts.items()}
        return {name: one for name, one in found.items() if one.a.count_nonzero() or one.b.count_nonzero()}

    def _place(self, module: str, key: str) -> Place:
        if module not in self._places:
            raise self._misfit(key, "has no matrix in this model")
        return self._places[module]

    def _spelled(self, module: str) -> str:
        """A stack's own name: PEFT wraps the second around the first, and names neither."""
        stem = module.removesuffix(".base_layer")
        if not stem.endswith(".experts"):
            return module
        if f"{stem}.base_layer" in self._pairs:
            return f"{stem}.{'down_proj' if module == stem else 'gate_up_proj'}"
        both = sum(name.endswith("gate_up_proj") for name in self._said.stacked)
        return f"{stem}.{'gate_up_proj' if both else 'down_proj'}"

    def _whole(self, place: Place, pair: Mapping[str, Tensor]) -> Factors:
        if pair.keys() != {"A", "B"} or any(tensor.dim() != 2 for tensor in pair.values()):
            raise self._misfit(place.module, "has not two matrices, A and B")
        a, b, rank = pair["A"].float(), pair["B"].float(), self._said.rank_of(place.module)
        columns = self._shapes[place.ours[0]][-1]
        rows = sum(self._shapes[name][-2] for name in place.ours)
        if place.ours[0] == "embedding.weight":
            rows, columns = columns, rows
        count = self._experts if self._is_stack(place) else 1
        if a.shape != (rank * count, columns) or b.shape != (rows, rank * count):
            sizes = f"{list(a.shape)} and {list(b.shape)}"
            raise self._misfit(place.module, f"has A and B of {sizes}; rank {rank} of this model asks for others")
        if self._is_stack(place):
            a, b = unstacked_by_expert(a, b, count)
        return Factors(a, b, Strength(rank=rank, alpha=self._said.alpha_of(place.module), rslora=self._said.rslora))

    def _is_stack(self, place: Place) -> bool:
        return place.expert is None and len(self._shapes[place.ours[0]]) > 2

    def _parts(self, place: Place, whole: Factors) -> dict[str, Factors]:
        if len(place.ours) == 1:
            return {place.ours[0]: whole}
        rows = [self._shapes[name][-2] for name in place.ours]
        parts = zip(place.ours, taken_apart(whole, rows), strict=True)
        return {name: part for name, part in parts if part is not None}

    def _stack(self, name: str, each: dict[int, Factors]) -> Factors:
        if len(each) != self._experts or len({one.strength for one in each.values()}) > 1:
            raise self._misfit(name, f"is adapted in {len(each)} of {self._experts} experts, or not alike in all")
        ordered = [each[expert] for expert in range(self._experts)]
        a, b = torch.stack([one.a for one in ordered]), torch.stack([one.b for one in ordered])
        return Factors(a, b, ordered[0].strength)

    def _misfit(self, name: str, what: str) -> ModelFolderError:
        return ModelFolderError(f"{self._folder / TENSORS}: {printable(name)} {what}; give the base it was trained on")


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS
    if not path.is_file():
        other = (
            "; adapter_model.bin is not read, save it again with safe_serialization"
            * (folder / "adapter_model.bin").is_file()
        )
        raise ModelFolderError(f"{folder}: has no {TENSORS}{other or '; copy it too'}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path}: cannot be read ({error}); copy it again") from None
