"""Mixtral 8x7B: `MixtralForCausalLM` folders.

Source: Hugging Face transformers 5.23, `models/mixtral/configuration_mixtral.py`; it computes with fused experts and
yet saves them under the original names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem.catalogue.config import ModelConfig, MoE, SoftmaxRouter
from tandem.model.families import llama_like, mistral
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields

NAMES = replace(
    llama_like.NAMES,
    inner=llama_like.NAMES.inner
    | {
        "feed_forward.router": "block_sparse_moe.gate",
        "feed_forward.experts.gate": "block_sparse_moe.experts.{expert}.w1.weight",
        "feed_forward.experts.up": "block_sparse_moe.experts.{expert}.w3.weight",
        "feed_forward.experts.down": "block_sparse_moe.experts.{expert}.w2.weight",
    },
)

COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "quantization_config": (None,),
}
"""Fields that change the computation, with the values this decoder computes."""


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    defaults = llama_like.Defaults(norm_eps=1e-5, max_position=131072, kv_heads=8, theta=1e6)
    config = llama_like.read("mixtral", file, defaults)
    mixture = MoE(
        experts=file.size("num_local_experts", 8),
        top_k=file.size("num_experts_per_tok", 2),
        size=file.size("intermediate_size"),
        router=SoftmaxRouter(),
        balance=file.coefficient("router_aux_loss_coef", 0.001),
    )
    config = replace(config, feed_forward=mixture)
    if file.get("sliding_window") is None:
        return config
    return mistral.with_window(config, file.size("sliding_window"))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    mixture = config.feed_forward
    assert isinstance(mixture, MoE)
    experts = {"num_local_experts": mixture.experts, "num_experts_per_tok": mixture.top_k}
    balance = {"router_aux_loss_coef": mixture.balance}
    return llama_like.write(config) | mistral.write_window(config) | experts | balance


MIXTRAL = Family(
    name="mixtral",
    model_type="mixtral",
    architectures=("MixtralForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=NAMES.tensors,
    ignored=llama_like.ignored,
)
