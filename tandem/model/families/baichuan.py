"""Baichuan 2: `BaichuanForCausalLM` folders, 13B with ALiBi and 7B with rotary positions.

Source: `configuration_baichuan.py` and `modeling_baichuan.py` beside the weights (baichuan-inc/Baichuan2-13B-Chat and
7B-Chat). The two have one class name. What tells them apart, whatever their sizes, is `max_position_embeddings`: 7B has
it, 13B has `model_max_length` alone. A folder of a published size that has the other's field was changed by a tool, and
is refused.

Baichuan 1 is refused: its 13B has the same class name, but a plain head. Its vocabulary of 64000 tells it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Alibi, Rope
from tandem.catalogue.require import require
from tandem.errors import ModelFolderError
from tandem.model.families import llama_like
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields

NAMES = replace(
    llama_like.NAMES,
    inner=llama_like.NAMES.inner | {f"attention.{part}": "self_attn.W_pack" for part in ("q", "k", "v")},
)

COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "quantization_config": (None,),
    "rope_scaling": (None,),
    "rope_theta": (10000, None),
    "tie_word_embeddings": (False, None),
}
"""Fields that change the computation, with the values this decoder computes."""

THETA = 10000.0
"""Base of 7B's rotary positions; no field says it."""

FIRST_VOCABULARY = 64000
"""Baichuan 1's; Baichuan 2 has 125696."""

ROTARY_SHAPE, ALIBI_SHAPE = (32, 4096), (40, 5120)
"""Layers and hidden size of the published 7B and 13B."""


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    if file.get("vocab_size") == FIRST_VOCABULARY:
        raise ModelFolderError(
            f"{where}: vocab_size {FIRST_VOCABULARY} is Baichuan 1's, which is not supported; give Baichuan 2"
        )
    heads, hidden = file.size("num_attention_heads"), file.size("hidden_size")
    require(hidden % heads == 0, f"{hidden} hidden numbers cannot be cut into {heads} heads")
    rotary = file.get("max_position_embeddings") is not None
    _refuse_the_others_field(file, rotary=rotary)
    return ModelConfig(
        family="baichuan",
        vocab_size=file.size("vocab_size"),
        hidden_size=hidden,
        layers=file.size("num_hidden_layers"),
        attention=GQA(heads=heads, kv_heads=heads, head_dim=hidden // heads),
        position=Rope(theta=THETA, dims=hidden // heads) if rotary else Alibi(),
        feed_forward=SwiGLU(size=file.size("intermediate_size")),
        norm_eps=file.number("rms_norm_eps", 1e-6),
        normalised_head=True,
        max_position=file.size("max_position_embeddings" if rotary else "model_max_length", 4096),
    )


def _refuse_the_others_field(file: Fields, *, rotary: bool) -> None:
    shape = file.get("num_hidden_layers"), file.get("hidden_size")
    if rotary and shape == ALIBI_SHAPE:
        raise ModelFolderError(
            f"{file.where}: max_position_embeddings stands for the rotary positions of 7B, and this is 13B, which has "
            "ALiBi; remove the field"
        )
    if not rotary and shape == ROTARY_SHAPE:
        raise ModelFolderError(
            f"{file.where}: max_position_embeddings is missing, and this is 7B, which has rotary positions; "
            "add the field"
        )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    attention, feed_forward = config.attention, config.feed_forward
    assert isinstance(attention, GQA)
    assert isinstance(feed_forward, SwiGLU)
    reach = {"max_position_embeddings": config.max_position} if isinstance(config.position, Rope) else {}
    return {
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": feed_forward.size,
        **reach,
        "model_max_length": config.max_position,
        "num_attention_heads": attention.heads,
        "num_hidden_layers": config.layers,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
        "z_loss_weight": 0,
    }


BAICHUAN = Family(
    name="baichuan",
    model_type="baichuan",
    architectures=("BaichuanForCausalLM",),
    read_config=read_config,
    write_config=write_config,
    tensors=NAMES.tensors,
    ignored=llama_like.ignored,
)
