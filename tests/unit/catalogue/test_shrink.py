from __future__ import annotations

import math

import pytest

from tandem.catalogue.arithmetic import parameters
from tandem.catalogue.config import GQA, MLA, GroupedSigmoidRouter, ModelConfig, MoE, SwiGLU
from tandem.catalogue.models import MODELS
from tandem.catalogue.position import Llama3Scaling, QwenNTK, Rope, Yarn
from tandem.catalogue.shrink import SmallShape, parse_shape, shrink
from tandem.errors import UsageError

PAIRS = [pytest.param(model.config, shrink(model.config), id=name) for name, model in MODELS.items()]


@pytest.mark.parametrize(("real", "small"), PAIRS)
def test_what_is_not_a_size_stays(real: ModelConfig, small: ModelConfig) -> None:
    for name in ("family", "norm_eps", "norm_weight_wide", "tied_embeddings", "normalised_head"):
        assert getattr(small, name) == getattr(real, name)
    assert type(small.attention) is type(real.attention)
    assert type(small.position) is type(real.position)
    assert type(small.feed_forward) is type(real.feed_forward)
    assert parameters(small) < 1_000_000
    assert small.vocab_size == 1024


@pytest.mark.parametrize(("real", "small"), PAIRS)
def test_heads(real: ModelConfig, small: ModelConfig) -> None:
    assert (small.attention.heads.bit_count() == 1) == (real.attention.heads.bit_count() == 1)
    if isinstance(real.attention, GQA):
        assert isinstance(small.attention, GQA)
        assert (small.attention.kv_heads < small.attention.heads) == (real.attention.kv_heads < real.attention.heads)
        assert small.attention.kv_heads > 1
        assert small.attention.qkv_bias == real.attention.qkv_bias
        assert (small.attention.logn is None) == (real.attention.logn is None)
    if isinstance(real.attention, MLA):
        assert isinstance(small.attention, MLA)
        assert small.attention.q_rank is not None


@pytest.mark.parametrize(("real", "small"), PAIRS)
def test_rotation_and_its_scaling(real: ModelConfig, small: ModelConfig) -> None:
    if not isinstance(real.position, Rope):
        return
    assert isinstance(small.position, Rope)
    assert (small.position.theta, small.position.interleaved) == (real.position.theta, real.position.interleaved)
    assert type(small.position.scaling) is type(real.position.scaling)
    if isinstance(real.attention, GQA) and isinstance(small.attention, GQA):
        assert small.position.dims / small.attention.head_dim == real.position.dims / real.attention.head_dim
    if isinstance(scaling := small.position.scaling, Llama3Scaling | QwenNTK | Yarn):
        assert scaling.trained <= 128 < small.max_position


def test_llama3_keeps_interpolates_and_stretches() -> None:
    position = shrink(MODELS["llama3.1-8b"].config).position
    assert isinstance(position, Rope)
    scaling = position.scaling
    assert isinstance(scaling, Llama3Scaling)
    waves = [2 * math.pi * position.theta ** (pair / position.dims) for pair in range(0, position.dims, 2)]
    kept, stretched = scaling.trained / scaling.high, scaling.trained / scaling.low
    assert any(wave < kept for wave in waves)
    assert any(kept < wave < stretched for wave in waves)
    assert any(wave > stretched for wave in waves)


def test_deepseek_has_plain_layers_experts_and_groups_to_choose() -> None:
    small = shrink(MODELS["deepseek-v3"].config)
    mixture = small.feed_forward
    assert isinstance(mixture, MoE)
    assert isinstance(mixture.router, GroupedSigmoidRouter)
    assert [isinstance(small.feed_forward_of(layer), SwiGLU) for layer in range(4)] == [True, True, False, False]
    assert mixture.router.chosen_groups < mixture.router.groups
    assert mixture.top_k < mixture.experts * mixture.router.chosen_groups // mixture.router.groups
    assert mixture.shared_size
    assert (mixture.router.scale, mixture.router.normalise) == (2.5, True)


def test_sizes_can_be_given() -> None:
    shape = parse_shape("layers=2, hidden=128,kv_heads=1,vocab=2000")
    assert shape == SmallShape(layers=2, hidden=128, kv_heads=1, vocab=2000)
    small = shrink(MODELS["llama3-8b"].config, shape)
    assert (small.layers, small.hidden_size, small.vocab_size) == (2, 128, 2000)
    assert isinstance(small.attention, GQA)
    assert (small.attention.heads, small.attention.kv_heads, small.attention.head_dim) == (4, 1, 32)
    assert small.feed_forward == SwiGLU(size=448)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("llama3-8b", "depth=2", "'depth=2' is not NAME=NUMBER with one of layers, hidden"),
        ("llama3-8b", "layers=two", "'layers=two'"),
        ("llama3-8b", "layers=0", "layers is 0"),
        ("llama3-8b", "hidden=100", "100 is no multiple of 4 x 4 heads"),
        ("llama3-8b", "kv_heads=3", "4 heads are not divisible by 3 kv heads"),
        ("llama3-8b", "experts=4", "nothing that experts could size"),
        ("llama3-8b", "layers=2,layers=3", "layers is given twice; leave one out"),
        ("deepseek-v3", "kv_heads=2", "nothing that kv_heads could size"),
        ("deepseek-v3", "experts=15", "15 experts do not fill 4 groups"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(name: str, text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        shrink(MODELS[name].config, parse_shape(text))


@pytest.mark.parametrize(("name", "shape"), [("llama3-8b", "layers=999999999"), ("mixtral-8x7b", "experts=99999999")])
def test_absurd_counts_are_refused_at_once(name: str, shape: str) -> None:
    with pytest.raises(UsageError, match=r"more than any model has|are too many"):
        shrink(MODELS[name].config, parse_shape(shape))


def test_inner_sizes_plain_layers_or_experts_where_there_are_none() -> None:
    sizes = {}
    for name, shape in (
        ("mixtral-8x7b", "inner=48"),
        ("deepseek-v3", "inner=48"),
        ("deepseek-v3", "inner=48,layers=1"),
    ):
        mixture = shrink(MODELS[name].config, parse_shape(shape)).feed_forward
        assert isinstance(mixture, MoE)
        sizes[name, shape] = (mixture.size, mixture.shared_size, mixture.dense_size)
    assert list(sizes.values()) == [(48, 0, 0), (32, 32, 48), (48, 48, 0)]
