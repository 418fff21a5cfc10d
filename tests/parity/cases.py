"""What is compared: a small `config.json` for each way of computing that some family has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reference import baichuan, chatglm, qwen
from reference.random_folder import Form

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
LLAMA = SMALL | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
QWEN2 = {name: value for name, value in SMALL.items() if name != "head_dim"} | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
}
MISTRAL = SMALL | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None}
MIXTRAL = SMALL | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
GLM = SMALL | {
    "architectures": ["GlmForCausalLM"],
    "model_type": "glm",
    "rms_norm_eps": 1.5625e-07,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "pad_token_id": None,  # transformers' own is outside of a small vocabulary
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "n_shared_experts": 2,
    "n_routed_experts": 16,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 2,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 320,
    "tie_word_embeddings": False,
}
DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 5.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


@dataclass(frozen=True)
class Case:
    """One comparison."""

    name: str
    fields: dict[str, Any]
    """`config.json`, as the family's original spells it."""
    form: Form = "safetensors"
    """Of the files, where they are not transformers' own."""


def scaled(kind: str, **fields: object) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, **fields}}


def yarn(**fields: object) -> dict[str, Any]:
    """A ramp that begins and ends between the pairs of a small head, so that each of its fields matters."""
    scaling = scaled("yarn", factor=4.0, original_max_position_embeddings=64, **fields)
    return scaling | {"max_position_embeddings": 256}


LLAMA3 = scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

CASES = (
    Case("llama", LLAMA),
    Case("llama, tied, one kv head", LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    Case("llama, heads of their own width", LLAMA | {"num_key_value_heads": 6, "head_dim": 12}),
    Case("llama, linear", LLAMA | scaled("linear", factor=3.0)),
    Case("llama, dynamic", LLAMA | scaled("dynamic", factor=3.0)),
    Case("llama, llama3", LLAMA | LLAMA3),
    Case("llama, yarn", LLAMA | yarn()),
    Case("llama, yarn, mscale", LLAMA | yarn(mscale=1.2, mscale_all_dim=0.6)),
    Case("llama, yarn, odd", LLAMA | yarn(beta_fast=4.0, beta_slow=0.5, attention_factor=1.3, truncate=False)),
    Case("mistral", MISTRAL),
    Case("mistral, window", MISTRAL | {"sliding_window": 20}),
    Case("mixtral", MIXTRAL),
    Case("mixtral, window", MIXTRAL | {"sliding_window": 20}),
    Case("qwen2", QWEN2),
    Case("qwen2, tied", QWEN2 | {"tie_word_embeddings": True}),
    Case("qwen2, window", QWEN2 | {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    Case("qwen2, yarn", QWEN2 | yarn()),
    Case("glm", GLM),
    Case("glm, without bias", GLM | {"attention_bias": False}),
    Case("deepseek_v3", DEEPSEEK),
    Case("deepseek_v3, yarn", DEEPSEEK | {"rope_scaling": DEEPSEEK_YARN}),
    Case("deepseek_v3, queries direct, halves", DEEPSEEK | {"q_lora_rank": None, "rope_interleave": False}),
    Case(
        "deepseek_v3, weights as they are",
        DEEPSEEK | {"norm_topk_prob": False, "first_k_dense_replace": 0, "rms_norm_eps": 0.05},
    ),
    Case("qwen", qwen.tiny(), "bin"),
    Case("qwen, plain", qwen.tiny() | {"use_dynamic_ntk": False, "use_logn_attn": False}),
    Case("chatglm3", chatglm.tiny_chatglm3(), "sharded"),
    Case("glm4", chatglm.tiny_glm4()),
    Case("baichuan2-13b", baichuan.tiny_13b(), "sharded-bin"),
    Case("baichuan2-7b", baichuan.tiny_7b()),
)
