"""Baichuan 2 (`BaichuanForCausalLM`, `model_type: baichuan`): 13B with ALiBi, 7B with RoPE.

A pre-norm decoder with as many key as query heads, no biases, llama's tensor names and MLP. What sets it apart:

- `W_pack` is q, k and v one after the other.
- NormHead: the rows of `lm_head.weight` are scaled to length one before they meet the hidden state.
- 13B: no rotary positions; the score of query i and key j gets `slope · (j - i)` after the division by the root of d
  (Press et al. 2021, arXiv:2108.12409).
- 7B: RoPE to the base 10000 on halves of the whole head.

The two have the same class and `model_type` but differ in the modeling file beside the weights. Of the fields of
config.json one tells them apart whatever the sizes: 7B has `max_position_embeddings` (beside `model_max_length`), 13B
has `model_max_length` alone, and its configuration class knows no other. Other engines look at `hidden_size` (4096 or
5120) or `num_hidden_layers` (32 or 40), which tells the released ones apart and nothing else.

Baichuan 1 is not meant here: its 13B has this class name too but a plain head, and a vocabulary of 64000, not 125696.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.transformer import (
    Array,
    Config,
    Shapes,
    Weights,
    attention,
    of_layers,
    rms_norm,
    rotate_halves,
    silu,
    split_heads,
    turns,
)


def has_rope(config: Config) -> bool:
    """Whether the configuration is one of 7B, which turns; 13B leans on ALiBi."""
    return "max_position_embeddings" in config


def alibi_slopes(heads: int) -> Array:
    """The slope of each head, [heads].

    For a power of two they are a geometric sequence from 2^(-8/heads) down to 2^-8. Otherwise the power of two p below
    gives its own, and the heads left over take the 1st, 3rd, 5th ... of the sequence for 2p.
    """
    below = 2 ** (heads.bit_length() - 1)
    own = 2.0 ** (-8.0 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-8.0 * np.arange(1, 2 * below + 1, 2) / (2 * below))
    return np.concatenate([own, between])[:heads]


def alibi(heads: int, length: int) -> Array:
    """What is added to the score of query i and key j: `slope · (j - i)`, [heads, length, length]."""
    positions = np.arange(length)
    return alibi_slopes(heads)[:, None, None] * (positions[None, :] - positions[:, None])


def logits(
    config: Config, tensors: Mapping[str, NDArray[Any]], tokens: list[int], prompt_length: int | None = None
) -> Array:
    """The logits after each token, [T, V]; the length of the prompt makes no difference."""
    model = Weights(tensors, "model.")
    epsilon = config["rms_norm_eps"]

    x = model["embed_tokens.weight"][tokens]
    for n in range(config["num_hidden_layers"]):
        layer = model.under(f"layers.{n}")
        x = x + _attention(config, layer.under("self_attn"), rms_norm(x, layer["input_layernorm.weight"], epsilon))
        x = x + _mlp(layer.under("mlp"), rms_norm(x, layer["post_attention_layernorm.weight"], epsilon))
    x = rms_norm(x, model["norm.weight"], epsilon)
    head = Weights(tensors)["lm_head.weight"]
    return x @ (head / np.linalg.norm(head, axis=1, keepdims=True)).T


def _attention(config: Config, weights: Weights, x: Array) -> Array:
    heads = config["num_attention_heads"]
    q, k, v = (split_heads(part, heads) for part in np.split(weights.linear("W_pack", x), 3, axis=1))
    if has_rope(config):
        rotations = turns(len(x), q.shape[2], 10000.0)
        mixed = attention(rotate_halves(q, rotations), rotate_halves(k, rotations), v)
    else:
        mixed = attention(q, k, v, alibi(heads, len(x)))
    return weights.linear("o_proj", mixed)


def _mlp(weights: Weights, x: Array) -> Array:
    return weights.linear("down_proj", silu(weights.linear("gate_proj", x)) * weights.linear("up_proj", x))


def shapes(config: Config) -> Shapes:
    """Every tensor of a checkpoint, by name."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    layer: Shapes = {
        "self_attn.W_pack.weight": (3 * hidden, hidden),
        "self_attn.o_proj.weight": (hidden, hidden),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    return (
        {"model.embed_tokens.weight": (vocabulary, hidden)}
        | of_layers("model.layers", config["num_hidden_layers"], layer)
        | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    )


def tiny_13b() -> Config:
    """A small config.json with the fields of Baichuan2-13B's; six heads are no power of two, as the original's 40."""
    return {
        "_from_model_config": True,
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 48,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "model_max_length": 64,
        "model_type": "baichuan",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "tokenizer_class": "BaichuanTokenizer",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.29.2",
        "use_cache": True,
        "vocab_size": 97,
        "z_loss_weight": 0,
    }


def tiny_7b() -> Config:
    """A small config.json with the fields of Baichuan2-7B's."""
    return tiny_13b() | {
        "hidden_size": 64,
        "intermediate_size": 176,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
    }
