"""GLM-4 as Hugging Face lays it out (`THUDM/glm-4-9b-chat-hf`): `GlmForCausalLM` folders.

Source: Hugging Face transformers 5.23, `models/glm/configuration_glm.py`. The original layout is `chatglm.py`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig
from tandem.catalogue.position import Rope
from tandem.model.families import llama_like
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields

NAMES = replace(
    llama_like.NAMES,
    inner=llama_like.NAMES.inner | {"feed_forward.gate": "mlp.gate_up_proj", "feed_forward.up": "mlp.gate_up_proj"},
)

COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "quantization_config": (None,),
}
"""Fields that change the computation, with the values this decoder computes."""

DEFAULTS = llama_like.Defaults(norm_eps=1.5625e-07, max_position=131072, kv_heads=2, head_dim=128, rotated=0.5)


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    config = llama_like.read("glm", file, DEFAULTS)
    assert isinstance(config.attention, GQA)
    assert isinstance(config.position, Rope)
    return replace(
        config,
        attention=replace(config.attention, qkv_bias=file.flag("attention_bias", True)),
        position=replace(config.position, interleaved=True),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    assert isinstance(config.attention, GQA)
    assert isinstance(config.position, Rope)
    return llama_like.write(config) | {
        "attention_bias": config.attention.qkv_bias,
        "pad_token_id": None,  # what a missing one means to transformers is outside of a small vocabulary
        "partial_rotary_factor": config.position.dims / config.attention.head_dim,
    }


GLM = Family(
    name="glm",
    model_type="glm",
    architectures=("GlmForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=NAMES.tensors,
    ignored=llama_like.ignored,
)
