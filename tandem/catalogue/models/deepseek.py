"""DeepSeek-V3 and R1: one shape; latent attention and 256 experts, published in FP8."""

from __future__ import annotations

from tandem.catalogue.config import MLA, GroupedSigmoidRouter, ModelConfig, MoE
from tandem.catalogue.named import NamedModel
from tandem.catalogue.position import Rope, Yarn

CONFIG = ModelConfig(
    family="deepseek_v3",
    vocab_size=129280,
    hidden_size=7168,
    layers=61,
    attention=MLA(heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
    position=Rope(
        theta=1e4,
        dims=64,
        interleaved=True,
        scaling=Yarn(factor=40.0, trained=4096, mscale=1.0, mscale_all_dim=1.0),
    ),
    feed_forward=MoE(
        experts=256,
        top_k=8,
        size=2048,
        router=GroupedSigmoidRouter(groups=8, chosen_groups=4, scale=2.5, normalise=True),
        shared_size=2048,
        dense_layers=3,
        dense_size=18432,
        balance=0.001,
    ),
    norm_eps=1e-6,
    max_position=163840,
)


def _deepseek(short: str) -> NamedModel:
    return NamedModel(
        name=f"deepseek-{short.lower()}",
        series="DeepSeek",
        repository=f"deepseek-ai/DeepSeek-{short}",
        config=CONFIG,
        dtype="float8_e4m3fn",
        tokenizer="deepseek",
        chat="deepseek",
        note="serving: 4 machines of 8 cards in bfloat16, 2 in W8A8; the repository also holds a layer that drafts "
        "further tokens, which is not counted here",
    )


DEEPSEEK = (_deepseek("V3"), _deepseek("R1"))
