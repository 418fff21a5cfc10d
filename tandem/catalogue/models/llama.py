"""Llama 2, 3, 3.1 and 3.2, and Yi, which has Llama's architecture."""

from __future__ import annotations

from functools import partial

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.layout import EXAMPLE, MinimumCards, ParallelLayout, derived, documented, like
from tandem.catalogue.models.plain import plain
from tandem.catalogue.named import NamedModel
from tandem.catalogue.position import Llama3Scaling


def _llama2(
    size: str, config: ModelConfig, layouts: tuple[ParallelLayout, ...], also: tuple[str, ...] = ()
) -> NamedModel:
    return NamedModel(
        name=f"llama2-{size}",
        series="llama2",
        repository=f"meta-llama/Llama-2-{size}-chat-hf",
        also=also,
        config=config,
        dtype="float16",
        tokenizer="llama2",
        chat="llama2",
        layouts=layouts,
    )


def _llama3(
    name: str,
    repository: str,
    config: ModelConfig,
    layouts: tuple[ParallelLayout, ...],
    minimum_cards: tuple[MinimumCards, ...] = (),
) -> NamedModel:
    return NamedModel(
        name=name,
        series=name.partition("-")[0],
        repository=f"meta-llama/{repository}",
        config=config,
        dtype="bfloat16",
        tokenizer="llama3",
        chat="llama3",
        layouts=layouts,
        minimum_cards=minimum_cards,
    )


def _yi(size: str, config: ModelConfig, layouts: tuple[ParallelLayout, ...]) -> NamedModel:
    return NamedModel(
        name=f"yi-{size.lower()}",
        series="Yi",
        repository=f"01-ai/Yi-{size}-Chat",
        config=config,
        dtype="bfloat16",
        tokenizer="yi",
        chat="chatml",
        layouts=layouts,
    )


_llama2_config = partial(plain, family="llama", vocab=32000, theta=1e4, norm_eps=1e-5, max_position=4096)
_llama3_config = partial(plain, family="llama", vocab=128256, kv_heads=8, theta=5e5, norm_eps=1e-5, max_position=8192)
_llama31_config = partial(_llama3_config, max_position=131072)
_yi_config = partial(plain, family="llama", vocab=64000, theta=5e6, norm_eps=1e-5, max_position=4096)

LLAMA_31_SCALING = Llama3Scaling(factor=8.0, low=1.0, high=4.0, trained=8192)
LLAMA_32_SCALING = Llama3Scaling(factor=32.0, low=1.0, high=4.0, trained=8192)

LLAMA2 = (
    _llama2(
        "7b",
        _llama2_config(hidden=4096, layers=32, heads=32, kv_heads=32, inner=11008),
        (
            documented(4096, tp=1, pp=4, cards=4),
            documented(4096, tp=1, pp=4, cards=8),
            documented(8192, tp=2, pp=4, cards=8),
        ),
    ),
    _llama2(
        "13b",
        _llama2_config(hidden=5120, layers=40, heads=40, kv_heads=40, inner=13824),
        (documented(4096, tp=8, pp=1, cards=8), documented(8192, tp=8, pp=1, cards=8)),
    ),
    _llama2(
        "70b",
        _llama2_config(hidden=8192, layers=80, heads=64, kv_heads=8, inner=28672),
        (documented(4096, tp=8, pp=4, cards=32), documented(8192, tp=8, pp=8, cards=64)),
        also=("meta-llama/Llama-2-70b-hf",),
    ),
)

LLAMA3 = (
    _llama3(
        "llama3-8b",
        "Meta-Llama-3-8B-Instruct",
        _llama3_config(hidden=4096, layers=32, heads=32, inner=14336),
        (documented(4096, tp=4, pp=1, cards=4), documented(8192, tp=4, pp=1, cards=4)),
    ),
    _llama3(
        "llama3-70b",
        "Meta-Llama-3-70B-Instruct",
        _llama3_config(hidden=8192, layers=80, heads=64, inner=28672),
        (documented(4096, tp=8, pp=4, cards=32), documented(8192, tp=8, pp=8, cards=64)),
    ),
    _llama3(
        "llama3.1-8b",
        "Meta-Llama-3.1-8B-Instruct",
        _llama31_config(hidden=4096, layers=32, heads=32, inner=14336, scaling=LLAMA_31_SCALING),
        (
            derived(like("llama3-8b"), 4096, tp=4, pp=1, cards=4),
            derived(like("llama3-8b"), 8192, tp=4, pp=1, cards=4),
        ),
        (MinimumCards(cards=4),),
    ),
    _llama3(
        "llama3.1-70b",
        "Meta-Llama-3.1-70B-Instruct",
        _llama31_config(hidden=8192, layers=80, heads=64, inner=28672, scaling=LLAMA_31_SCALING),
        (
            derived(like("llama3-70b"), 4096, tp=8, pp=4, cards=32),
            derived(like("llama3-70b"), 8192, tp=8, pp=8, cards=64),
        ),
        (
            MinimumCards(cards=32, tuning="full", seq_length=4096),
            MinimumCards(cards=64, tuning="full", seq_length=8192),
            MinimumCards(cards=16, tuning="lora"),
        ),
    ),
    _llama3(
        "llama3.2-1b",
        "Llama-3.2-1B-Instruct",
        _llama31_config(hidden=2048, layers=16, heads=32, inner=8192, scaling=LLAMA_32_SCALING, tied=True),
        (derived("fewest cards of the documents", 4096, tp=1, pp=1, cards=1),),
        (MinimumCards(cards=1),),
    ),
    _llama3(
        "llama3.2-3b",
        "Llama-3.2-3B-Instruct",
        _llama31_config(hidden=3072, layers=28, heads=24, inner=8192, scaling=LLAMA_32_SCALING, tied=True),
        (derived("fewest cards of the documents", 4096, tp=1, pp=2, cards=2),),
        (MinimumCards(cards=2, tuning="full"), MinimumCards(cards=1, tuning="lora")),
    ),
)

YI = (
    _yi(
        "6B",
        _yi_config(hidden=4096, layers=32, heads=32, kv_heads=4, inner=11008),
        (derived(like("llama2-7b"), 4096, tp=1, pp=4, cards=4),),
    ),
    _yi(
        "34B",
        _yi_config(hidden=7168, layers=60, heads=56, kv_heads=8, inner=20480),
        (derived(EXAMPLE, 4096, tp=8, pp=2, cards=16),),
    ),
)
