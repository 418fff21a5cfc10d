"""Mistral 7B: `MistralForCausalLM` folders.

Source: Hugging Face transformers 5.23, `models/mistral/configuration_mistral.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig, Window
from tandem.model.families import llama_like
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields

COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "layer_types": (None,),  # Ministral's; this class gives every layer the same
    "quantization_config": (None,),
}
"""Fields that change the computation, with the values this decoder computes."""

WINDOW = 4096
"""Version 0.1's; what a missing `sliding_window` means, unlike null."""


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    config = llama_like.read("mistral", file, llama_like.Defaults(max_position=131072, kv_heads=8))
    return config if file.null("sliding_window") else with_window(config, file.size("sliding_window", WINDOW))


def with_window(config: ModelConfig, size: int) -> ModelConfig:
    """The same with a window on all layers."""
    assert isinstance(config.attention, GQA)
    window = Window(size=size, layers=tuple(range(config.layers)))
    return replace(config, attention=replace(config.attention, window=window))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    return llama_like.write(config) | write_window(config)


def write_window(config: ModelConfig) -> dict[str, Any]:
    """`sliding_window`, null where there is none."""
    assert isinstance(config.attention, GQA)
    window = config.attention.window
    assert window is None or len(window.layers) == config.layers, "all layers slide or none"
    return {"sliding_window": window.size if window else None}


MISTRAL = Family(
    name="mistral",
    model_type="mistral",
    architectures=("MistralForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=llama_like.NAMES.tensors,
    ignored=llama_like.ignored,
)
