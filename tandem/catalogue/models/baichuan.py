"""Baichuan2-13B: ALiBi instead of rotation, and a head whose rows have length one."""

from __future__ import annotations

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.layout import DOCUMENT, derived
from tandem.catalogue.named import NamedModel
from tandem.catalogue.position import Alibi

BAICHUAN2_13B = NamedModel(
    name="baichuan2-13b",
    series="Baichuan2",
    repository="baichuan-inc/Baichuan2-13B-Chat",
    config=ModelConfig(
        family="baichuan",
        vocab_size=125696,
        hidden_size=5120,
        layers=40,
        attention=GQA(heads=40, kv_heads=40, head_dim=128),
        position=Alibi(),
        feed_forward=SwiGLU(size=13696),
        norm_eps=1e-6,
        normalised_head=True,
        max_position=4096,
    ),
    dtype="bfloat16",
    tokenizer="baichuan2",
    chat="baichuan2",
    layouts=(derived(f"TP and PP {DOCUMENT} of an earlier release", 4096, tp=8, pp=1, cards=8),),
)
