"""Qwen v1 (`QWenLMHeadModel`, `model_type: qwen`): Qwen-1.8B, 7B, 14B and 72B, base and chat.

A pre-norm decoder with as many key as query heads. What sets it apart:

- `c_attn` is q, k and v one after the other and always has a bias; the other projections have one if not `no_bias`.
- The MLP is `c_proj(w1(x) · silu(w2(x)))`, and `intermediate_size` counts w1 and w2 together: each is half of it.
- RoPE turns halves of the first `kv_channels · rotary_pct` channels of a head.
- `use_dynamic_ntk`: the base of RoPE is `rotary_emb_base · α^(n / (n - 2))` for n turned channels, with α from the
  length of the prompt L: `max(2^ceil(log2(L / seq_length) + 1) - 1, 1)`. It stays for all tokens after the prompt.
- `use_logn_attn`: the query at position p, counted from 1, is multiplied by the logarithm of p to the base `seq_length`
  where p > `seq_length`. The original has a table of these up to position 32767 and cannot go on.

Both are for inference only: in training the original uses neither.
"""

from __future__ import annotations

import math
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


def alpha(config: Config, prompt_length: int) -> float:
    """The NTK factor of a prompt: 1 up to `seq_length`, 3 up to twice, 7 up to four times, and so on."""
    if not config["use_dynamic_ntk"]:
        return 1.0
    doublings = math.ceil(math.log2(prompt_length / config["seq_length"]) + 1)
    return max(2.0**doublings - 1.0, 1.0)


def logn(config: Config, length: int) -> Array:
    """What the queries at the positions 0 to length - 1 are multiplied by, [length]."""
    positions = np.arange(1, length + 1, dtype=np.float64)
    if not config["use_logn_attn"]:
        return np.ones(length)
    return np.maximum(np.log(positions) / math.log(config["seq_length"]), 1.0)


def logits(
    config: Config, tensors: Mapping[str, NDArray[Any]], tokens: list[int], prompt_length: int | None = None
) -> Array:
    """The logits after each token, [T, V]; the first `prompt_length` tokens (all of them) are the prompt."""
    transformer = Weights(tensors, "transformer.")
    epsilon = config["layer_norm_epsilon"]
    width = int(config["kv_channels"] * config["rotary_pct"])
    stretch = alpha(config, prompt_length or len(tokens)) ** (width / (width - 2))
    rotations = turns(len(tokens), width, config["rotary_emb_base"] * stretch)

    x = transformer["wte.weight"][tokens]
    for n in range(config["num_hidden_layers"]):
        layer = transformer.under(f"h.{n}")
        x = x + _attention(config, layer.under("attn"), rms_norm(x, layer["ln_1.weight"], epsilon), rotations)
        x = x + _mlp(config, layer.under("mlp"), rms_norm(x, layer["ln_2.weight"], epsilon))
    return Weights(tensors).linear("lm_head", rms_norm(x, transformer["ln_f.weight"], epsilon))


def _attention(config: Config, weights: Weights, x: Array, rotations: NDArray[np.complex128]) -> Array:
    q, k, v = (
        split_heads(part, config["num_attention_heads"])
        for part in np.split(weights.linear("c_attn", x, bias=True), 3, axis=1)
    )
    q = rotate_halves(q, rotations) * logn(config, len(x))[:, None]
    k = rotate_halves(k, rotations)
    return weights.linear("c_proj", attention(q, k, v), bias=not config["no_bias"])


def _mlp(config: Config, weights: Weights, x: Array) -> Array:
    bias = not config["no_bias"]
    return weights.linear("c_proj", weights.linear("w1", x, bias) * silu(weights.linear("w2", x, bias)), bias)


def shapes(config: Config) -> Shapes:
    """Every tensor of a checkpoint, by name."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"] // 2, config["vocab_size"]
    projected = config["kv_channels"] * config["num_attention_heads"]
    layer: Shapes = {
        "ln_1.weight": (hidden,),
        "attn.c_attn.weight": (3 * projected, hidden),
        "attn.c_attn.bias": (3 * projected,),
        "attn.c_proj.weight": (hidden, projected),
        "ln_2.weight": (hidden,),
        "mlp.w1.weight": (inner, hidden),
        "mlp.w2.weight": (inner, hidden),
        "mlp.c_proj.weight": (hidden, inner),
    }
    if not config["no_bias"]:
        layer |= {"attn.c_proj.bias": (hidden,), "mlp.w1.bias": (inner,), "mlp.w2.bias": (inner,)}
        layer |= {"mlp.c_proj.bias": (hidden,)}
    return (
        {"transformer.wte.weight": (vocabulary, hidden)}
        | of_layers("transformer.h", config["num_hidden_layers"], layer)
        | {"transformer.ln_f.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    )


def tiny() -> Config:
    """A small config.json with the fields of Qwen-7B's; its context is 32, so that tests can go beyond it."""
    return {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "attn_dropout_prob": 0.0,
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": 64,
        "intermediate_size": 160,
        "initializer_range": 0.02,
        "kv_channels": 16,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 256,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 32,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "transformers_version": "4.32.0",
        "use_cache": True,
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": 97,
    }
