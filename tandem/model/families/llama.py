"""Llama 2, 3, 3.1, 3.2 and Yi: `LlamaForCausalLM` folders; and what other families share with them.

Source: Hugging Face transformers 5.23, `models/llama/configuration_llama.py`.
"""

from __future__ import annotations

import re
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Rope
from tandem.catalogue.shapes import parameter_shapes
from tandem.model.families.family import Family, Rows, TensorMap
from tandem.model.families.fields import Fields
from tandem.model.families.rope import read_rope, write_rope

OURS_TO_THEIRS = (
    (r"^embedding\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
    (r"^layers\.", "model.layers."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.feed_forward_norm\.", ".post_attention_layernorm."),
    (r"\.attention\.([qkvo])\.", r".self_attn.\1_proj."),
    (r"\.feed_forward\.(gate|up|down)\.", r".mlp.\1_proj."),
)

COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
}
"""Fields that change the computation, with the values this decoder computes."""


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    return read_llama_like("llama", file, norm_eps=1e-6, max_position=2048)


def read_llama_like(family: str, file: Fields, *, norm_eps: float, max_position: int) -> ModelConfig:
    """What the Llama-like families read alike; `norm_eps` and `max_position` are the family's defaults."""
    heads, hidden = file.size("num_attention_heads"), file.size("hidden_size")
    head_dim = file.size("head_dim", hidden // heads)
    trained = file.size("max_position_embeddings", max_position)
    return ModelConfig(
        family=family,
        vocab_size=file.size("vocab_size"),
        hidden_size=hidden,
        layers=file.size("num_hidden_layers"),
        attention=GQA(heads=heads, kv_heads=file.size("num_key_value_heads", heads), head_dim=head_dim),
        position=read_rope(file, head_dim, trained),
        feed_forward=SwiGLU(size=file.size("intermediate_size")),
        norm_eps=file.number("rms_norm_eps", norm_eps),
        tied_embeddings=file.flag("tie_word_embeddings", False),
        max_position=trained,
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    return write_llama_like(config) | {"attention_bias": False, "mlp_bias": False}


def write_llama_like(config: ModelConfig) -> dict[str, Any]:
    """What the Llama-like families write alike."""
    assert isinstance(config.attention, GQA)
    assert isinstance(config.position, Rope)
    sizes = {"intermediate_size": config.feed_forward.size} if isinstance(config.feed_forward, SwiGLU) else {}
    return {
        "attention_dropout": 0.0,
        "head_dim": config.attention.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        **sizes,
        "max_position_embeddings": config.max_position,
        "num_attention_heads": config.attention.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.attention.kv_heads,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config.position),
        "tie_word_embeddings": config.tied_embeddings,
        "vocab_size": config.vocab_size,
    }


def their_name(ours: str) -> str:
    """`layers.0.attention.q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    for pattern, replacement in OURS_TO_THEIRS:
        ours = re.sub(pattern, replacement, ours)
    return ours


def tensors(config: ModelConfig) -> TensorMap:
    """Every tensor is one parameter of ours."""
    return {their_name(ours): (Rows(ours),) for ours in parameter_shapes(config)}


def ignored(theirs: str, config: ModelConfig) -> bool:
    """Old folders carry the rotary frequencies, and some tied ones a copy of the embedding as head."""
    return theirs.endswith("rotary_emb.inv_freq") or (config.tied_embeddings and theirs == "lm_head.weight")


LLAMA = Family(
    name="llama",
    model_type="llama",
    architectures=("LlamaForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=tensors,
    ignored=ignored,
)
