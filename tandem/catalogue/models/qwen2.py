"""Qwen1.5, Qwen2 and Qwen2.5: one architecture."""

from __future__ import annotations

from functools import partial

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.layout import EXAMPLE, MinimumCards, ParallelLayout, derived, like
from tandem.catalogue.models.plain import plain
from tandem.catalogue.named import NamedModel


def _qwen2(
    series: str,
    size: str,
    config: ModelConfig,
    layouts: tuple[ParallelLayout, ...],
    minimum_cards: tuple[MinimumCards, ...] = (),
) -> NamedModel:
    tuned = "Chat" if series == "Qwen1.5" else "Instruct"
    return NamedModel(
        name=f"{series}-{size}".lower(),
        series=series,
        repository=f"Qwen/{series}-{size}-{tuned}",
        config=config,
        dtype="bfloat16",
        tokenizer="qwen2",
        chat="chatml",
        layouts=layouts,
        minimum_cards=minimum_cards,
    )


_config = partial(plain, family="qwen2", vocab=152064, theta=1e6, norm_eps=1e-6, max_position=32768, qkv_bias=True)

SIZE_05B = _config(hidden=896, layers=24, heads=14, kv_heads=2, inner=4864, vocab=151936, tied=True)
SIZE_7B = _config(hidden=3584, layers=28, heads=28, kv_heads=4, inner=18944)
SIZE_72B = _config(hidden=8192, layers=80, heads=64, kv_heads=8, inner=29568)
"""Sizes that Qwen2 and Qwen2.5 share."""

QWEN15 = (
    _qwen2(
        "Qwen1.5",
        "7B",
        _config(hidden=4096, layers=32, heads=32, kv_heads=32, inner=11008, vocab=151936),
        (derived(EXAMPLE, 8192, tp=8, pp=1, cards=8),),
    ),
    _qwen2(
        "Qwen1.5",
        "14B",
        _config(hidden=5120, layers=40, heads=40, kv_heads=40, inner=13696),
        (derived(EXAMPLE, 8192, tp=4, pp=1, cards=8),),
    ),
    _qwen2(
        "Qwen1.5",
        "32B",
        _config(hidden=5120, layers=64, heads=40, kv_heads=8, inner=27392),
        (derived(EXAMPLE, 8192, tp=8, pp=4, cards=32),),
    ),
    _qwen2(
        "Qwen1.5",
        "72B",
        _config(hidden=8192, layers=80, heads=64, kv_heads=64, inner=24576),
        (derived(EXAMPLE, 8192, tp=8, pp=8, cards=64),),
    ),
)

QWEN2 = (
    _qwen2(
        "Qwen2",
        "0.5B",
        SIZE_05B,
        (derived(EXAMPLE, 4096, tp=1, pp=1, cards=8),),
        (MinimumCards(cards=1),),
    ),
    _qwen2(
        "Qwen2",
        "1.5B",
        _config(hidden=1536, layers=28, heads=12, kv_heads=2, inner=8960, vocab=151936, tied=True),
        (derived(EXAMPLE, 4096, tp=1, pp=1, cards=8),),
        (MinimumCards(cards=1),),
    ),
    _qwen2(
        "Qwen2",
        "7B",
        SIZE_7B,
        (derived(EXAMPLE, 4096, tp=1, pp=2, cards=8),),
        (MinimumCards(cards=4, seq_length=4096), MinimumCards(cards=8, seq_length=8192)),
    ),
    _qwen2(
        "Qwen2",
        "72B",
        SIZE_72B,
        (derived(EXAMPLE, 4096, tp=8, pp=4, cards=32),),
        (
            MinimumCards(cards=32, tuning="full", seq_length=4096),
            MinimumCards(cards=64, tuning="full", seq_length=8192),
            MinimumCards(cards=16, tuning="lora"),
        ),
    ),
)

QWEN25 = (
    _qwen2(
        "Qwen2.5",
        "0.5B",
        SIZE_05B,
        (derived(like("qwen2-0.5b"), 4096, tp=1, pp=1, cards=8),),
        (MinimumCards(cards=1),),
    ),
    _qwen2(
        "Qwen2.5",
        "7B",
        SIZE_7B,
        (derived(like("qwen2-7b"), 4096, tp=1, pp=2, cards=8),),
        (MinimumCards(cards=4, tuning="full"), MinimumCards(cards=2, tuning="lora")),
    ),
    _qwen2(
        "Qwen2.5",
        "14B",
        _config(hidden=5120, layers=48, heads=40, kv_heads=8, inner=13824),
        (derived(like("qwen-14b"), 4096, tp=8, pp=1, cards=8),),
    ),
    _qwen2(
        "Qwen2.5",
        "32B",
        _config(hidden=5120, layers=64, heads=40, kv_heads=8, inner=27648),
        (derived(like("qwen1.5-32b"), 8192, tp=8, pp=4, cards=32),),
    ),
    _qwen2(
        "Qwen2.5",
        "72B",
        SIZE_72B,
        (derived(like("qwen2-72b"), 4096, tp=8, pp=4, cards=32),),
    ),
)
