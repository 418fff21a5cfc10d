"""Latent attention: what is absorbed into queries is what would be expanded; and how little a token leaves behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.catalogue.config import MLA, ModelConfig, SwiGLU
from tandem.catalogue.models import MODELS
from tandem.catalogue.position import Rope, Yarn
from tandem.kernels.attention import attend
from tandem.kv.cache import CacheLayout
from tandem.model.attention import LatentAttention

shapes = st.builds(
    MLA,
    heads=st.integers(1, 4),
    q_rank=st.none() | st.integers(1, 8),
    kv_rank=st.integers(1, 8),
    nope_dim=st.integers(1, 6),
    rope_dim=st.integers(1, 3).map(lambda pairs: 2 * pairs),
    value_dim=st.integers(1, 6),
)


def attention(shape: MLA, scaling: Yarn | None = None) -> LatentAttention:
    config = ModelConfig(
        family="deepseek_v3",
        vocab_size=2,
        hidden_size=12,
        layers=1,
        attention=shape,
        position=Rope(theta=1e4, dims=shape.rope_dim, interleaved=True, scaling=scaling),
        feed_forward=SwiGLU(size=4),
        norm_eps=1e-6,
        max_position=64,
    )
    return LatentAttention(config, shape, 0).double()


@given(shape=shapes, new=st.integers(1, 6), before=st.integers(0, 6), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_absorbed_equals_expanded(shape: MLA, new: int, before: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = attention(shape)
    q = torch.randn(1, new, shape.heads, shape.nope_dim + shape.rope_dim, dtype=torch.float64)
    latents = torch.randn(1, new + before, shape.kv_rank + shape.rope_dim, dtype=torch.float64)
    with torch.inference_mode():
        expanded = attend(q, *layer.expand(latents), scale=layer.scale)
        seen = latents.unsqueeze(-2)
        absorbed = layer.values(attend(layer.absorb(q), seen, seen, scale=layer.scale))
    torch.testing.assert_close(absorbed, expanded, atol=1e-10, rtol=0)


def test_a_token_of_deepseek_leaves_576_numbers_in_each_layer() -> None:
    for name in ("deepseek-v3", "deepseek-r1"):
        layout = CacheLayout.of(MODELS[name].config, "bfloat16", 16)
        assert layout.bytes_per_token == 61 * 576 * 2
        assert layout.bytes_per_block == 16 * layout.bytes_per_token


def test_the_scores_are_sharpened_as_deepseek_does() -> None:
    """192^-0.5 times the square of 0.1 ln 40 + 1; the rotation itself is not."""
    config = MODELS["deepseek-v3"].config
    assert isinstance(config.attention, MLA)
    assert isinstance(config.position, Rope)
    assert isinstance(config.position.scaling, Yarn)
    with torch.device("meta"):
        layer = LatentAttention(config, config.attention, 0)
    assert layer.scale == pytest.approx(192**-0.5 * 1.3688879454113936**2, rel=1e-9)
    assert config.position.scaling.amplitude == 1
