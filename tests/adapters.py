"""Decoders with adapters that do something, for the tests of LoRA."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from parity.cases import CASES, Case
from parity.measure import CPU, tokens_of
from parity.references import Reference, write
from torch import Tensor, nn

from tandem.catalogue.config import ModelConfig
from tandem.model.decoder import Decoder
from tandem.model.folder import load
from tandem.parallel.world import World
from tandem.training.adapters.lora import apply_lora
from tandem.training.adapters.peft_folder import save_factors
from tandem.training.compute.gathering import Gathering
from tandem.training.settings.config import LoraConfig

FAMILIES = (
    "llama", "mistral", "mixtral", "qwen2", "glm", "deepseek_v3", "qwen", "chatglm3", "baichuan2-13b", "baichuan2-7b",
)  # fmt: skip
TOKENS = tokens_of(30, 97)


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def reference_of(name: str, folder: Path) -> Reference:
    return write(case_of(name), folder)


def base_of(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    reference_of(name, folder)
    return load(folder, CPU, dtype)


def adapted(name: str, folder: Path, dtype: torch.dtype = torch.float32, **fields: object) -> Decoder:
    """A family's small model in `folder`, with adapters of rank 4 that move its logits."""
    decoder = base_of(name, folder, dtype)
    apply_lora(decoder, LoraConfig.model_validate({"rank": 4, "alpha": 6, **fields}), 0)
    randomise(lora_parameters(decoder).values())
    return decoder


def every_target(config: ModelConfig) -> tuple[str, ...]:
    """All that may be adapted at once."""
    tables = ("embedding",) if config.normalised_head else ("embedding", "head")
    return ("all-linear", *(() if config.tied_embeddings else tables))


def lora_parameters(decoder: nn.Module) -> dict[str, nn.Parameter]:
    """Every factor by its name."""
    named = decoder.named_parameters()
    return {name: parameter for name, parameter in named if name.endswith(("lora_a", "lora_b"))}


def save_adapter(decoder: Decoder, folder: Path, base: str | None = None) -> None:
    """Write the adapters of a decoder that is whole here."""
    save_factors(decoder.config, Gathering(decoder, World()).factors(), folder, base)


def randomise(tensors: Iterable[Tensor], std: float = 0.08) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_(0, std, generator=generator)
