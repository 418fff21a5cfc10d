"""Llama 2, 3, 3.1, 3.2 and Yi: `LlamaForCausalLM` folders.

Source: Hugging Face transformers 5.23, `models/llama/configuration_llama.py`.
"""

from __future__ import annotations

from typing import Any

from tandem.catalogue.config import ModelConfig
from tandem.model.families import llama_like
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields

COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
"""Fields that change the computation, with the values this decoder computes."""


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    return llama_like.read("llama", file, llama_like.Defaults(max_position=2048))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    return llama_like.write(config) | {"attention_bias": False, "mlp_bias": False}


LLAMA = Family(
    name="llama",
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=llama_like.NAMES.tensors,
    ignored=llama_like.ignored,
)
