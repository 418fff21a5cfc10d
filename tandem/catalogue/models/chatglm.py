"""ChatGLM3 and GLM-4 in their original layout: half of each head is rotated, in neighbouring pairs."""

from __future__ import annotations

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.layout import DOCUMENT, EXAMPLE, derived
from tandem.catalogue.named import NamedModel
from tandem.catalogue.position import Rope


def _config(*, vocab: int, layers: int, theta: float, norm_eps: float, max_position: int) -> ModelConfig:
    return ModelConfig(
        family="chatglm",
        vocab_size=vocab,
        hidden_size=4096,
        layers=layers,
        attention=GQA(heads=32, kv_heads=2, head_dim=128, qkv_bias=True),
        position=Rope(theta=theta, dims=64, interleaved=True),
        feed_forward=SwiGLU(size=13696),
        norm_eps=norm_eps,
        norm_weight_wide=True,
        max_position=max_position,
    )


CHATGLM3 = NamedModel(
    name="glm3-6b",
    series="ChatGLMv3",
    repository="THUDM/chatglm3-6b",
    config=_config(vocab=65024, layers=28, theta=1e4, norm_eps=1e-5, max_position=8192),
    dtype="float16",
    tokenizer="chatglm3",
    chat="chatglm3",
    layouts=(
        derived(f"TP and PP {DOCUMENT} of an earlier release", 8192, tp=2, pp=4, cards=8),
        derived(EXAMPLE, 8192, tp=1, pp=2, cards=8),
    ),
)

GLM4 = NamedModel(
    name="glm4-9b",
    series="GLMv4",
    repository="THUDM/glm-4-9b-chat",
    revision="4b556ad4d70c38924cb8c120adbf21a0012de6ce",
    # rope_ratio 500 multiplies the base of 10000.
    config=_config(vocab=151552, layers=40, theta=5e6, norm_eps=1.5625e-07, max_position=131072),
    dtype="bfloat16",
    tokenizer="glm4",
    chat="glm4",
    layouts=(derived(EXAMPLE, 8192, tp=2, pp=2, cards=8),),
    note="the documents demand this revision",
)
