"""Qwen, the first: `QWenLMHeadModel` folders of Qwen-7B, 14B and 72B.

Source: `configuration_qwen.py` and `modeling_qwen.py` beside the weights (Qwen/Qwen-7B-Chat). What they need of a
`config.json` is read and written; their own Python is never run.
"""

from __future__ import annotations

from typing import Any

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import QwenNTK, Rope
from tandem.catalogue.require import require
from tandem.model.families import llama_like
from tandem.model.families.family import Family
from tandem.model.families.fields import Fields
from tandem.model.families.naming import Naming

NAMES = Naming(
    outer={"embedding": "transformer.wte", "norm": "transformer.ln_f", "head": "lm_head"},
    layers="transformer.h",
    inner={
        "attention_norm": "ln_1",
        "attention.q": "attn.c_attn",
        "attention.k": "attn.c_attn",
        "attention.v": "attn.c_attn",
        "attention.o": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.gate": "mlp.w2",
        "feed_forward.up": "mlp.w1",
        "feed_forward.down": "mlp.c_proj",
    },
)

COMPUTED: dict[str, tuple[object, ...]] = {
    "no_bias": (True, None),
    "rotary_pct": (1.0, None),
    "scale_attn_weights": (True, None),
    "use_cache_quantization": (False, None),
    "quantization_config": (None,),
}
"""Fields that change the computation, with the values this decoder computes."""


def read_config(fields: dict[str, Any], where: str) -> ModelConfig:
    """Translate `config.json`; refuses by name what the decoder cannot compute."""
    file = Fields(fields, where)
    file.only(COMPUTED)
    heads, trained = file.size("num_attention_heads"), file.size("seq_length")
    head_dim = file.size("kv_channels", 128)
    both = file.size("intermediate_size", least=2)
    require(both % 2 == 0, f"intermediate_size {both} is odd; it counts two equal parts")
    logn = trained if file.flag("use_logn_attn", True) else None
    scaling = QwenNTK(trained=trained) if file.flag("use_dynamic_ntk", True) else None
    return ModelConfig(
        family="qwen",
        vocab_size=file.size("vocab_size"),
        hidden_size=file.size("hidden_size"),
        layers=file.size("num_hidden_layers"),
        attention=GQA(heads=heads, kv_heads=heads, head_dim=head_dim, qkv_bias=True, logn=logn),
        position=Rope(theta=file.number("rotary_emb_base", 10000.0), dims=head_dim, scaling=scaling),
        feed_forward=SwiGLU(size=both // 2),
        norm_eps=file.number("layer_norm_epsilon", 1e-6),
        tied_embeddings=file.flag("tie_word_embeddings", False),
        max_position=file.size("max_position_embeddings", trained),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of an exported folder."""
    attention, position, feed_forward = config.attention, config.position, config.feed_forward
    assert isinstance(attention, GQA)
    assert isinstance(position, Rope)
    assert isinstance(feed_forward, SwiGLU)
    return {
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "hidden_size": config.hidden_size,
        "intermediate_size": 2 * feed_forward.size,
        "kv_channels": attention.head_dim,
        "layer_norm_epsilon": config.norm_eps,
        "max_position_embeddings": config.max_position,
        "no_bias": True,
        "num_attention_heads": attention.heads,
        "num_hidden_layers": config.layers,
        "rotary_emb_base": position.theta,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": _trained(config.max_position, attention, position),
        "tie_word_embeddings": config.tied_embeddings,
        "use_dynamic_ntk": position.scaling is not None,
        "use_logn_attn": attention.logn is not None,
        "vocab_size": config.vocab_size,
    }


def _trained(longest: int, attention: GQA, position: Rope) -> int:
    """One field says for both what they go by; a model with neither does not need it."""
    lengths = {position.scaling.trained} if isinstance(position.scaling, QwenNTK) else set()
    lengths |= {attention.logn} if attention.logn is not None else set()
    assert len(lengths) <= 1, f"seq_length cannot be {lengths}"
    return lengths.pop() if lengths else longest


QWEN = Family(
    name="qwen",
    model_type="qwen",
    architectures=("QWenLMHeadModel",),
    read_config=read_config,
    write_config=write_config,
    tensors=NAMES.tensors,
    ignored=llama_like.ignored,
)
