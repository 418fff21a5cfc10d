"""What the families laid out like Llama share: names, fields, and what their old folders carry beside.

Source: Hugging Face transformers 5.23, `models/llama/configuration_llama.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig, MoE, SwiGLU
from tandem.catalogue.position import Rope
from tandem.model.families.fields import Fields
from tandem.model.families.naming import Naming
from tandem.model.families.rope import read_rope, write_rope

SWIGLU = ("gate", "up", "down")

NAMES = Naming(
    outer={"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    layers="model.layers",
    inner={
        "attention_norm": "input_layernorm",
        **{f"attention.{part}": f"self_attn.{part}_proj" for part in ("q", "k", "v", "o")},
        "feed_forward_norm": "post_attention_layernorm",
        **{f"feed_forward.{part}": f"mlp.{part}_proj" for part in SWIGLU},
    },
)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a Llama-like family takes where its `config.json` does not say."""

    norm_eps: float = 1e-6
    max_position: int
    kv_heads: int | None = None
    """None for as many as query heads, which is also what null means in every family."""
    head_dim: int | None = None
    """None for what the query heads leave of the hidden size; likewise."""
    theta: float = 10000.0
    rotated: float = 1.0
    """Share of a head's dimensions that is rotated."""


def read(family: str, file: Fields, defaults: Defaults) -> ModelConfig:
    """What the Llama-like families read alike."""
    attention = _read_attention(file, defaults)
    trained = file.size("max_position_embeddings", defaults.max_position)
    return ModelConfig(
        family=family,
        vocab_size=file.size("vocab_size"),
        hidden_size=file.size("hidden_size"),
        layers=file.size("num_hidden_layers"),
        attention=attention,
        position=read_rope(file, attention.head_dim, trained, theta=defaults.theta, rotated=defaults.rotated),
        feed_forward=SwiGLU(size=file.size("intermediate_size")),
        norm_eps=file.number("rms_norm_eps", defaults.norm_eps),
        tied_embeddings=file.flag("tie_word_embeddings", False),
        max_position=trained,
    )


def _read_attention(file: Fields, defaults: Defaults) -> GQA:
    heads = file.size("num_attention_heads")
    left = max(file.size("hidden_size") // heads, 1)
    kv_heads = heads if file.null("num_key_value_heads") else defaults.kv_heads or heads
    head_dim = left if file.null("head_dim") else defaults.head_dim or left
    return GQA(
        heads=heads, kv_heads=file.size("num_key_value_heads", kv_heads), head_dim=file.size("head_dim", head_dim)
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """What the Llama-like families write alike."""
    attention, position, feed_forward = config.attention, config.position, config.feed_forward
    assert isinstance(attention, GQA)
    assert isinstance(position, Rope)
    assert isinstance(feed_forward, SwiGLU | MoE)
    return {
        "attention_dropout": 0.0,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": feed_forward.size,
        "max_position_embeddings": config.max_position,
        "num_attention_heads": attention.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": attention.kv_heads,
        "rms_norm_eps": config.norm_eps,
        **write_rope(position, config.max_position),
        "tie_word_embeddings": config.tied_embeddings,
        "vocab_size": config.vocab_size,
    }


def ignored(theirs: str, config: ModelConfig, fields: Mapping[str, Any]) -> bool:
    """Old folders carry the rotary frequencies, and some tied ones a copy of the embedding as head."""
    return theirs.endswith("rotary_emb.inv_freq") or (config.tied_embeddings and theirs == "lm_head.weight")
