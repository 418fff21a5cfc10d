"""Llama: `LlamaForCausalLM` folders.

Source: Hugging Face transformers 5.23, `models/llama/configuration_llama.py`; both its spelling of rotary parameters
(`rope_parameters`) and the older one (`rope_theta`, `rope_scaling`) are read, and the older one is written, because
every reader knows it.
"""

from __future__ import annotations

import re
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig, Rope, SwiGLU
from tandem.errors import ModelFolderError
from tandem.model.families.family import Family

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

LARGEST = 1e30
"""No field that is a number comes near it."""

ONLY: dict[str, tuple[object, ...]] = {
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
    for name, values in ONLY.items():
        if fields.get(name) not in values:
            raise ModelFolderError(f"{where}: {name} = {fields[name]!r} is not supported; supported: {values[0]!r}")
    heads = _size(fields, "num_attention_heads", where)
    hidden = _size(fields, "hidden_size", where)
    return ModelConfig(
        family="llama",
        vocab_size=_size(fields, "vocab_size", where),
        hidden_size=hidden,
        layers=_size(fields, "num_hidden_layers", where),
        attention=GQA(
            heads=heads,
            kv_heads=_size(fields, "num_key_value_heads", where, heads),
            head_dim=_size(fields, "head_dim", where, hidden // max(heads, 1)),
        ),
        position=_rope(fields, where),
        feed_forward=SwiGLU(size=_size(fields, "intermediate_size", where)),
        norm_eps=_number(fields, "rms_norm_eps", where, 1e-6),
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        max_position=_size(fields, "max_position_embeddings", where, 2048),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config.attention.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.feed_forward.size,
        "max_position_embeddings": config.max_position,
        "mlp_bias": False,
        "num_attention_heads": config.attention.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.attention.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": None,
        "rope_theta": config.position.theta,
        "tie_word_embeddings": config.tied_embeddings,
        "vocab_size": config.vocab_size,
    }


def their_name(ours: str) -> str:
    """`layers.0.attention.q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    for pattern, replacement in OURS_TO_THEIRS:
        ours = re.sub(pattern, replacement, ours)
    return ours


def ignored(theirs: str, config: ModelConfig) -> bool:
    """Old folders carry the rotary frequencies, and some tied ones a copy of the embedding as head."""
    return theirs.endswith("rotary_emb.inv_freq") or (config.tied_embeddings and theirs == "lm_head.weight")


def _size(fields: dict[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = default if fields.get(name) is None else fields[name]
    if type(value) is not int or value < 1:
        raise ModelFolderError(f"{where}: {name} is {value!r}; expected a whole number from 1 up")
    return value


def _number(fields: dict[str, Any], name: str, where: str, default: float) -> float:
    value = default if fields.get(name) is None else fields[name]
    if type(value) not in (int, float) or not 0 < value < LARGEST:
        raise ModelFolderError(f"{where}: {name} is {str(value)[:40]}; expected a number from 0 to {LARGEST:g}")
    return float(value)


def _rope(fields: dict[str, Any], where: str) -> Rope:
    new, old = (fields.get(name) or {} for name in ("rope_parameters", "rope_scaling"))
    if not (isinstance(new, dict) and isinstance(old, dict)):
        raise ModelFolderError(f"{where}: rope_parameters and rope_scaling must be objects or null")
    kind = new.get("rope_type") or old.get("rope_type") or old.get("type") or "default"
    if kind != "default":
        raise ModelFolderError(f"{where}: rope type {kind!r} is not supported yet; supported: 'default'")
    return Rope(theta=_number(fields | new, "rope_theta", where, 10000.0))


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    read_config=read_config,
    write_config=write_config,
    their_name=their_name,
    ignored=ignored,
)
