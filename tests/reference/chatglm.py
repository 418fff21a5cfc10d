"""ChatGLM3-6B and GLM-4-9B in their original layout (`ChatGLMModel`, `model_type: chatglm`).

A pre-norm decoder whose key and value heads number `multi_query_group_num`. What sets it apart:

- `query_key_value` is q, k and v one after the other: `num_attention_heads` heads of `kv_channels` channels, then twice
  `multi_query_group_num`. It has a bias with `add_qkv_bias` or `add_bias_linear`, the other projections with the
  latter only.
- RoPE turns neighbouring channels of the first half of a head, with frequencies as for a head that were that half.
  Its base is `10000 · rope_ratio`, where the configuration has that field; positions are never divided. ChatGLM3-6B has
  no such field, ChatGLM3-6B-32K 50, its 128K 500, GLM-4-9B-chat 500. (ChatGLM2-6B-32K, not of this family though it
  wears the same class and field names, divides positions by the ratio instead.)
- The MLP is `dense_4h_to_h(silu(first half) · second half)` of the `2 · ffn_hidden_size` outputs of `dense_h_to_4h`.
- With `apply_residual_connection_post_layernorm` the residuals are the outputs of the norms instead of their inputs.
- Without `post_layer_norm` there is no norm at the end; without `rmsnorm` the norms are layer norms with a bias.
- `apply_query_key_layer_scaling` divides the scores by the layer's number and multiplies them by it again, against
  overflow in half precision; `original_rope` has no effect.
- Checkpoints also hold `transformer.rotary_pos_emb.inv_freq`, which nothing reads.
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
    layer_norm,
    of_layers,
    rms_norm,
    rotate_neighbours,
    silu,
    split_heads,
    turns,
)


def logits(
    config: Config, tensors: Mapping[str, NDArray[Any]], tokens: list[int], prompt_length: int | None = None
) -> Array:
    """The logits after each token, [T, V]; the length of the prompt makes no difference."""
    transformer = Weights(tensors, "transformer.")
    encoder = transformer.under("encoder")
    rotations = turns(len(tokens), config["kv_channels"] // 2, 10000.0 * config.get("rope_ratio", 1))
    residual_is_normed = config["apply_residual_connection_post_layernorm"]

    x = transformer["embedding.word_embeddings.weight"][tokens]
    for n in range(config["num_layers"]):
        layer = encoder.under(f"layers.{n}")
        normed = _norm(config, layer.under("input_layernorm"), x)
        x = normed if residual_is_normed else x
        x = x + _attention(config, layer.under("self_attention"), normed, rotations)
        normed = _norm(config, layer.under("post_attention_layernorm"), x)
        x = normed if residual_is_normed else x
        x = x + _mlp(config, layer.under("mlp"), normed)
    if config["post_layer_norm"]:
        x = _norm(config, encoder.under("final_layernorm"), x)
    return transformer.linear("output_layer", x)


def _norm(config: Config, weights: Weights, x: Array) -> Array:
    if config["rmsnorm"]:
        return rms_norm(x, weights["weight"], config["layernorm_epsilon"])
    return layer_norm(x, weights["weight"], weights["bias"], config["layernorm_epsilon"])


def _attention(config: Config, weights: Weights, x: Array, rotations: NDArray[np.complex128]) -> Array:
    heads, groups, width = _heads(config)
    fused = weights.linear("query_key_value", x, bias=config["add_bias_linear"] or config["add_qkv_bias"])
    q, k, v = np.split(fused, [heads * width, (heads + groups) * width], axis=1)
    q, k = (rotate_neighbours(split_heads(q, heads), rotations), rotate_neighbours(split_heads(k, groups), rotations))
    return weights.linear("dense", attention(q, k, split_heads(v, groups)), bias=config["add_bias_linear"])


def _mlp(config: Config, weights: Weights, x: Array) -> Array:
    bias = config["add_bias_linear"]
    first, second = np.split(weights.linear("dense_h_to_4h", x, bias), 2, axis=1)
    return weights.linear("dense_4h_to_h", silu(first) * second, bias)


def _heads(config: Config) -> tuple[int, int, int]:
    """Query heads, key heads, and the width of a head."""
    if not config["multi_query_attention"]:
        raise NotImplementedError("without multi_query_attention query_key_value is laid out head by head")
    return config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]


def shapes(config: Config) -> Shapes:
    """Every tensor of a checkpoint, by name."""
    hidden, inner, vocabulary = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    heads, groups, width = _heads(config)
    fused = (heads + 2 * groups) * width
    layer: Shapes = {
        "input_layernorm.weight": (hidden,),
        "self_attention.query_key_value.weight": (fused, hidden),
        "self_attention.dense.weight": (hidden, heads * width),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.dense_h_to_4h.weight": (2 * inner, hidden),
        "mlp.dense_4h_to_h.weight": (hidden, inner),
    }
    final: Shapes = {"final_layernorm.weight": (hidden,)} if config["post_layer_norm"] else {}
    if config["add_bias_linear"] or config["add_qkv_bias"]:
        layer |= {"self_attention.query_key_value.bias": (fused,)}
    if config["add_bias_linear"]:
        layer |= {"self_attention.dense.bias": (hidden,)}
        layer |= {"mlp.dense_h_to_4h.bias": (2 * inner,), "mlp.dense_4h_to_h.bias": (hidden,)}
    if not config["rmsnorm"]:
        layer |= {"input_layernorm.bias": (hidden,), "post_attention_layernorm.bias": (hidden,)}
        final |= {"final_layernorm.bias": (hidden,)} if config["post_layer_norm"] else {}
    return (
        {"transformer.embedding.word_embeddings.weight": (vocabulary, hidden)}
        | {"transformer.rotary_pos_emb.inv_freq": (width // 4,)}
        | of_layers("transformer.encoder.layers", config["num_layers"], layer)
        | {f"transformer.encoder.{name}": shape for name, shape in final.items()}
        | {"transformer.output_layer.weight": (vocabulary, hidden)}
    )


def tiny_chatglm3() -> Config:
    """A small config.json with the fields of ChatGLM3-6B's."""
    return {
        "_name_or_path": "THUDM/chatglm3-6b",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
            "AutoModelForSequenceClassification": "modeling_chatglm.ChatGLMForSequenceClassification",
        },
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": 112,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": 64,
        "kv_channels": 16,
        "layernorm_epsilon": 1e-05,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 4,
        "num_layers": 3,
        "original_rope": True,
        "padded_vocab_size": 97,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 128,
        "use_cache": True,
        "torch_dtype": "float16",
        "transformers_version": "4.30.2",
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def tiny_glm4() -> Config:
    """A small config.json with the fields of GLM-4-9B-chat's; three query heads share a key head."""
    return tiny_chatglm3() | {
        "_name_or_path": "THUDM/glm-4-9b-chat",
        "hidden_size": 96,
        "layernorm_epsilon": 1.5625e-07,
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "rope_ratio": 500,
        "seq_length": 256,
        "torch_dtype": "bfloat16",
        "eos_token_id": [93, 94, 95],
        "pad_token_id": 93,
    }
