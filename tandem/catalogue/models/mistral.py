"""Mistral 7B v0.2, which has no sliding window any more, and Mixtral, its mixture."""

from __future__ import annotations

from dataclasses import replace

from tandem.catalogue.config import MoE, SoftmaxRouter
from tandem.catalogue.layout import EXAMPLE, derived
from tandem.catalogue.models.plain import plain
from tandem.catalogue.named import NamedModel

SHAPE = plain(
    family="mistral",
    vocab=32000,
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    inner=14336,
    theta=1e6,
    norm_eps=1e-5,
    max_position=32768,
)

MISTRAL_7B = NamedModel(
    name="mistral-7b",
    series="mistral",
    repository="mistralai/Mistral-7B-Instruct-v0.2",
    config=SHAPE,
    dtype="bfloat16",
    tokenizer="mistral",
    chat="mistral",
    layouts=(derived(EXAMPLE, 32768, tp=8, pp=1, cards=8),),
)

MIXTRAL_8X7B = NamedModel(
    name="mixtral-8x7b",
    series="mixtral",
    repository="mistralai/Mixtral-8x7B-Instruct-v0.1",
    config=replace(
        SHAPE,
        family="mixtral",
        feed_forward=MoE(experts=8, top_k=2, size=14336, router=SoftmaxRouter(), balance=0.02),
    ),
    dtype="bfloat16",
    tokenizer="mistral",
    chat="mistral",
    layouts=(derived(EXAMPLE, 32768, tp=8, pp=4, cp=2, cards=64),),
)
