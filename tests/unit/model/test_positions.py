"""Angles, slopes and factors against those of others: transformers' rotary functions, the references' formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import baichuan, qwen
from reference.transformer import rotate_halves, rotate_neighbours, turns
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Alibi, DynamicNTK, LinearScaling, Llama3Scaling, QwenNTK, Rope, Scaling, Yarn
from tandem.model.context import CausalContext
from tandem.model.families.rope import write_rope
from tandem.model.positions import Placement, Positions, alibi_slopes

CPU = torch.device("cpu")
TRAINED = 64
scalings: st.SearchStrategy[Scaling] = st.one_of(
    st.builds(LinearScaling, factor=st.floats(1, 32)),
    st.builds(DynamicNTK, factor=st.floats(1, 32), trained=st.just(TRAINED)),
    st.builds(
        Llama3Scaling,
        factor=st.floats(1, 32),
        low=st.floats(0.5, 2),
        high=st.floats(2.5, 8),
        trained=st.integers(16, 4096),
    ),
    st.builds(
        Yarn,
        factor=st.floats(1, 32),
        trained=st.integers(16, 4096),
        beta_fast=st.floats(5, 40),
        beta_slow=st.floats(0.1, 4),
        mscale=st.none() | st.floats(0.1, 2),
        mscale_all_dim=st.none() | st.floats(0.1, 2),
        attention_factor=st.none() | st.floats(0.5, 2),
        truncate=st.booleans(),
    ),
)


class Somewhere:
    """A context of tokens anywhere in sequences with prompts of any length."""

    def __init__(self, positions: list[int], prompts: list[int]) -> None:
        self.positions, self.prompts = torch.tensor(positions), torch.tensor(prompts)


def positions(position: Rope | Alibi, head_dim: int = 16, heads: int = 6, logn: int | None = None) -> Positions:
    attention = GQA(heads=heads, kv_heads=heads, head_dim=head_dim, logn=logn)
    return Positions(
        ModelConfig(
            family="llama",
            vocab_size=2,
            hidden_size=8,
            layers=1,
            attention=attention,
            position=position,
            feed_forward=SwiGLU(size=8),
            norm_eps=1e-6,
            max_position=TRAINED,
        )
    )


def place(of: Positions, at: list[int], prompts: list[int] | None = None, *, training: bool = False) -> Placement:
    context = Somewhere(at, prompts or [1] * len(at))
    return of.place(context, torch.float32, training=training)  # type: ignore[arg-type]


def assert_turns(found: Placement, frequencies: Tensor, at: list[int], amplitude: float = 1.0) -> None:
    angles = torch.tensor(at)[:, None].double() * frequencies.double()
    assert found.rotation is not None
    torch.testing.assert_close(found.rotation.cos[:, 0].double(), angles.cos() * amplitude, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.rotation.sin[:, 0].double(), angles.sin() * amplitude, atol=1e-4, rtol=1e-4)


@given(scaling=scalings, theta=st.floats(100, 1e7), pairs=st.integers(2, 32), length=st.integers(1, 400))
@settings(max_examples=80, deadline=None)
def test_frequencies_are_those_of_transformers(scaling: Scaling, theta: float, pairs: int, length: int) -> None:
    rope = Rope(theta=theta, dims=2 * pairs, scaling=scaling)
    written = write_rope(rope, TRAINED)
    config = LlamaConfig(
        head_dim=rope.dims,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_theta": theta} | written["rope_scaling"],
    )
    kind = written["rope_scaling"]["rope_type"]
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[kind](config, CPU, seq_len=length)
    at = [length - 1, min(length, 3) - 1]
    assert_turns(place(positions(rope, rope.dims), at, [length] * 2), frequencies, at, amplitude)


@pytest.mark.parametrize("prompt", [1, 31, 32, 33, 64, 65, 100, 128, 129])
def test_qwens_alpha_goes_by_the_prompt_alone(prompt: int) -> None:
    rope = Rope(theta=10000.0, dims=16, scaling=QwenNTK(trained=32))
    alpha = qwen.alpha({"use_dynamic_ntk": True, "seq_length": 32}, prompt)
    base = 10000.0 * alpha ** (16 / 14)
    at = [0, prompt - 1, prompt, 300]
    frequencies = base ** (-torch.arange(0, 16, 2).double() / 16)
    assert_turns(place(positions(rope), at, [prompt] * 4), frequencies, at)


def test_qwens_factors_are_for_inference_only() -> None:
    rope = Rope(theta=10000.0, dims=16, scaling=QwenNTK(trained=32))
    of, plain = positions(rope, logn=32), positions(replace(rope, scaling=None))
    trained = place(of, [99], [100], training=True)
    assert trained.query_scale is None
    assert trained.rotation is not None
    assert torch.equal(trained.rotation.cos, place(plain, [99], [100]).rotation.cos)  # type: ignore[union-attr]


def test_queries_are_scaled_beyond_the_trained_length() -> None:
    at = [0, 30, 31, 32, 40, 99]
    found = place(positions(Rope(theta=1e4, dims=16), logn=32), at)
    assert found.query_scale is not None
    exact = [1.0, 1.0, 1.0, *(math.log(p + 1, 32) for p in at[3:])]
    torch.testing.assert_close(found.query_scale.flatten(), torch.tensor(exact))


def test_each_sequence_has_its_own_frequencies() -> None:
    """Tokens of several sequences in one batch, some beyond what the model was trained on."""
    of = positions(Rope(theta=1e4, dims=16, scaling=DynamicNTK(factor=3.0, trained=TRAINED)))
    at, prompts = [5, 5, 99, 99], [10, 100, 90, 100]
    together = place(of, at, prompts)
    assert together.rotation is not None
    for number, (position, prompt) in enumerate(zip(at, prompts, strict=True)):
        alone = place(of, [position], [prompt])
        assert alone.rotation is not None
        assert torch.equal(together.rotation.cos[number], alone.rotation.cos[0])
    assert not torch.equal(together.rotation.cos[0], together.rotation.cos[1])
    assert torch.equal(together.rotation.cos[2], together.rotation.cos[3])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [16, 8])
def test_rotating_is_complex_multiplication(interleaved: bool, dims: int) -> None:
    x = torch.randn(1, 20, 6, 16)
    of = positions(Rope(theta=1e4, dims=dims, interleaved=interleaved))
    found = of.place(CausalContext(1, 20, CPU), torch.float32, training=False).rotate(x)
    rotate = rotate_neighbours if interleaved else rotate_halves
    exact = rotate(x[0].transpose(0, 1).double().numpy(), turns(20, dims, 1e4))
    np.testing.assert_allclose(found[0].transpose(0, 1).numpy(), exact, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 32, 40, 52, 64])
def test_slopes_are_those_of_the_formula(heads: int) -> None:
    np.testing.assert_allclose(alibi_slopes(heads, CPU).numpy(), baichuan.alibi_slopes(heads), rtol=1e-6)


def test_alibi_rotates_nothing() -> None:
    found = place(positions(Alibi()), [3])
    assert found.rotation is None
    assert found.slopes is not None
    x = torch.randn(1, 6, 16)
    assert found.rotate_query(x) is x
