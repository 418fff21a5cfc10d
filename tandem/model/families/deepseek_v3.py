"""DeepSeek-V3 and R1: `DeepseekV3ForCausalLM` folders.

Source: `configuration_deepseek.py` and `modeling_deepseek.py` beside the weights (deepseek-ai/DeepSeek-V3), and Hugging
Face transformers 5.23, `models/deepseek_v3`. What R1 was distilled into are Llama and Qwen2 folders.

Weights in fp8 with a scale for each block of 128 x 128 are accepted; reading them is the weights' business. The layers
that draft further tokens, as many as `num_nextn_predict_layers` says and behind the last one, are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tandem.catalogue.config import MLA, GroupedSigmoidRouter, ModelConfig, MoE
from tandem.catalogue.position import Rope
from tandem.catalogue.require import require
from tandem.model.families import llama_like
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields
from tandem.model.families.rope import read_rope, write_rope

NAMES = replace(
    llama_like.NAMES,
    inner=llama_like.NAMES.inner
    | {
        "attention.q_down": "self_attn.q_a_proj",
        "attention.q_norm": "self_attn.q_a_layernorm",
        "attention.q_up": "self_attn.q_b_proj",
        "attention.kv_down": "self_attn.kv_a_proj_with_mqa",
        "attention.kv_norm": "self_attn.kv_a_layernorm",
        "attention.kv_up": "self_attn.kv_b_proj",
        "feed_forward.router": "mlp.gate",
        "feed_forward.router.bias": "mlp.gate.e_score_correction_bias",
        **{f"feed_forward.experts.{part}": f"mlp.experts.{{expert}}.{part}_proj.weight" for part in llama_like.SWIGLU},
        **{f"feed_forward.shared.{part}": f"mlp.shared_experts.{part}_proj" for part in llama_like.SWIGLU},
    },
)

COMPUTED: dict[str, tuple[object, ...]] = {
    "attention_bias": (False, None),
    "ep_size": (1, None),
    "hidden_act": ("silu", None),
    "moe_layer_freq": (1, None),
    "scoring_func": ("sigmoid", None),
    "topk_method": ("noaux_tc", None),
}
"""Fields that change the computation, with the values this decoder computes."""

BLOCK = (128, 128)
"""Rows and columns of a quantised matrix that share one scale."""

QUANTISED: dict[str, tuple[object, ...]] = {
    "activation_scheme": ("dynamic", None),
    "fmt": ("e4m3", None),
    "quant_method": ("fp8",),
    "weight_block_size": (list(BLOCK),),
}
"""The same within `quantization_config`; the first of each is what is published."""

DRAFTING = "num_nextn_predict_layers"


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    attention, trained = _read_attention(file), file.size("max_position_embeddings", 4096)
    file.only(COMPUTED | {"num_key_value_heads": (attention.heads, None)})
    if file.get("quantization_config") is not None:
        file.part("quantization_config").only(QUANTISED)
    file.size(DRAFTING, 0, least=0)  # no part of the computation; `ignored` goes by it
    position = read_rope(file, attention.rope_dim, trained)
    return ModelConfig(
        family="deepseek_v3",
        vocab_size=file.size("vocab_size"),
        hidden_size=file.size("hidden_size"),
        layers=file.size("num_hidden_layers"),
        attention=attention,
        position=replace(position, interleaved=file.flag("rope_interleave", True)),
        feed_forward=_read_mixture(file),
        norm_eps=file.number("rms_norm_eps", 1e-6),
        tied_embeddings=file.flag("tie_word_embeddings", False),
        max_position=trained,
    )


def _read_attention(file: Fields) -> MLA:
    return MLA(
        heads=file.size("num_attention_heads"),
        q_rank=None if file.null("q_lora_rank") else file.size("q_lora_rank", 1536),
        kv_rank=file.size("kv_lora_rank"),
        nope_dim=file.size("qk_nope_head_dim"),
        rope_dim=file.size("qk_rope_head_dim"),
        value_dim=file.size("v_head_dim"),
    )


def _read_mixture(file: Fields) -> MoE:
    size, dense = file.size("moe_intermediate_size"), file.size("first_k_dense_replace", 3, least=0)
    shared = 0 if file.null("n_shared_experts") else file.size("n_shared_experts", 1, least=0)
    return MoE(
        experts=file.size("n_routed_experts"),
        top_k=file.size("num_experts_per_tok"),
        size=size,
        router=GroupedSigmoidRouter(
            groups=file.size("n_group"),
            chosen_groups=file.size("topk_group"),
            scale=file.number("routed_scaling_factor"),
            normalise=file.flag("norm_topk_prob", True),
        ),
        shared_size=size * shared,
        dense_layers=dense,
        dense_size=file.size("intermediate_size") if dense else 0,
        balance=_read_balance(file),
    )


def _read_balance(file: Fields) -> float:
    """Of `seq_aux` only that it is no nonsense: training judges every sequence by itself, and says so."""
    file.flag("seq_aux", True)
    return file.coefficient("aux_loss_alpha")


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    assert isinstance(config.position, Rope)
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "ep_size": 1,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "max_position_embeddings": config.max_position,
        "num_hidden_layers": config.layers,
        DRAFTING: 0,
        "rms_norm_eps": config.norm_eps,
        "rope_interleave": config.position.interleaved,
        **_write_attention(config),
        **_write_mixture(config),
        **write_rope(config.position, config.max_position),
        "tie_word_embeddings": config.tied_embeddings,
        "vocab_size": config.vocab_size,
    }


def _write_attention(config: ModelConfig) -> dict[str, Any]:
    attention = config.attention
    assert isinstance(attention, MLA)
    return {
        "kv_lora_rank": attention.kv_rank,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.q_rank,
        "qk_nope_head_dim": attention.nope_dim,
        "qk_rope_head_dim": attention.rope_dim,
        "v_head_dim": attention.value_dim,
    }


def _write_mixture(config: ModelConfig) -> dict[str, Any]:
    mixture = config.feed_forward
    assert isinstance(mixture, MoE)
    assert isinstance(mixture.router, GroupedSigmoidRouter)
    require(mixture.shared_size % mixture.size == 0, f"shared_size must be whole experts of {mixture.size}")
    return {
        "aux_loss_alpha": mixture.balance,
        "first_k_dense_replace": mixture.dense_layers,
        # Readers want a number even where no layer is plain.
        "intermediate_size": mixture.dense_size or mixture.size,
        "moe_intermediate_size": mixture.size,
        "moe_layer_freq": 1,
        "n_group": mixture.router.groups,
        "n_routed_experts": mixture.experts,
        "n_shared_experts": mixture.shared_size // mixture.size,
        "norm_topk_prob": mixture.router.normalise,
        "num_experts_per_tok": mixture.top_k,
        "routed_scaling_factor": mixture.router.scale,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "topk_group": mixture.router.chosen_groups,
        "topk_method": "noaux_tc",
    }


def ignored(theirs: str, config: ModelConfig, fields: Mapping[str, Any]) -> bool:
    """The layers that draft further tokens; and what Llama's folders carry."""
    if llama_like.ignored(theirs, config, fields):
        return True
    layer = re.match(r"model\.layers\.(\d+)\.", theirs)
    drafting = range(config.layers, config.layers + (fields.get(DRAFTING) or 0))
    return layer is not None and int(layer[1]) in drafting


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    model_type="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=NAMES.tensors,
    ignored=ignored,
)
