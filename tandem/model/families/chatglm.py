"""ChatGLM3-6B and GLM-4-9B as they were published: `ChatGLMModel` folders.

Source: `configuration_chatglm.py` and `modeling_chatglm.py` beside the weights (THUDM/chatglm3-6b and glm-4-9b-chat).

ChatGLM2-6B-32K has the same class and the same fields but divides positions by `rope_ratio`, where these multiply the
base by it. Only the name it was published under tells it apart, and by that it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Rope
from tandem.catalogue.require import require
from tandem.errors import ModelFolderError
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields
from tandem.model.families.naming import Naming

NAMES = Naming(
    outer={
        "embedding": "transformer.embedding.word_embeddings",
        "norm": "transformer.encoder.final_layernorm",
        "head": "transformer.output_layer",
    },
    layers="transformer.encoder.layers",
    inner={
        "attention_norm": "input_layernorm",
        "attention.q": "self_attention.query_key_value",
        "attention.k": "self_attention.query_key_value",
        "attention.v": "self_attention.query_key_value",
        "attention.o": "self_attention.dense",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.dense_h_to_4h",
        "feed_forward.up": "mlp.dense_h_to_4h",
        "feed_forward.down": "mlp.dense_4h_to_h",
    },
)

COMPUTED: dict[str, tuple[object, ...]] = {
    "add_bias_linear": (False, None),
    "apply_residual_connection_post_layernorm": (False, None),
    "fp32_residual_connection": (False, None),
    "multi_query_attention": (True,),  # false lays queries, keys and values out head by head
    "post_layer_norm": (True, None),
    "pre_seq_len": (None,),
    "quantization_bit": (0, None),
    "quantization_config": (None,),
    "rmsnorm": (True, None),
    "rope_theta": (10000, None),
    "tie_word_embeddings": (False, None),
}
"""Fields that change the computation, with the values this decoder computes."""

THETA = 10000.0
"""Base of the rotary positions before `rope_ratio`; no field says it."""


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    _refuse_divided_positions(file)
    head_dim = file.size("kv_channels", 128, least=2)
    return ModelConfig(
        family="chatglm",
        vocab_size=file.size("padded_vocab_size", 65024),
        hidden_size=file.size("hidden_size"),
        layers=file.size("num_layers"),
        attention=GQA(
            heads=file.size("num_attention_heads"),
            kv_heads=file.size("multi_query_group_num", 1),
            head_dim=head_dim,
            qkv_bias=file.flag("add_qkv_bias", False),
        ),
        position=Rope(theta=THETA * file.number("rope_ratio", 1.0), dims=head_dim // 2, interleaved=True),
        feed_forward=SwiGLU(size=file.size("ffn_hidden_size")),
        norm_eps=file.number("layernorm_epsilon", 1e-5),
        norm_weight_wide=True,
        max_position=file.size("seq_length", 2048),
    )


def _refuse_divided_positions(file: Fields) -> None:
    if "chatglm2" in str(file.get("_name_or_path")).lower() and file.get("rope_ratio") not in (1, None):
        raise ModelFolderError(
            f"{file.where}: _name_or_path is ChatGLM2's, which divides positions by rope_ratio; give ChatGLM3 or GLM-4"
        )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    attention, position, feed_forward = config.attention, config.position, config.feed_forward
    assert isinstance(attention, GQA)
    assert isinstance(position, Rope)
    assert isinstance(feed_forward, SwiGLU)
    require(2 * position.dims == attention.head_dim, f"chatglm rotates half of a head, not {position.dims} dimensions")
    return {
        "add_bias_linear": False,
        "add_qkv_bias": attention.qkv_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "ffn_hidden_size": feed_forward.size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "kv_channels": attention.head_dim,
        "layernorm_epsilon": config.norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": attention.kv_heads,
        "num_attention_heads": attention.heads,
        "num_layers": config.layers,
        "original_rope": True,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": position.theta / THETA,
        "seq_length": config.max_position,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
    }


def ignored(theirs: str, config: ModelConfig, fields: Mapping[str, Any]) -> bool:
    """The rotary frequencies, which even the original computes anew."""
    return theirs == "transformer.rotary_pos_emb.inv_freq"


CHATGLM = Family(
    name="chatglm",
    model_type="chatglm",
    architectures=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    read_config=read_config,
    write_config=write_config,
    tensors=NAMES.tensors,
    ignored=ignored,
)
