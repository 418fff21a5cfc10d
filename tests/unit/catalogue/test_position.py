"""How far a prompt's length moves rotary angles, as the keys of blocks need to know it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from tandem.catalogue.position import DynamicNTK, LinearScaling, Llama3Scaling, QwenNTK, Rope, Scaling, Yarn

LENGTHS = range(1, 700)


def stretch(scaling: Scaling | None, prompt: int) -> int:
    return Rope(theta=1e4, dims=16, scaling=scaling).stretch(prompt)


def alpha(trained: int, prompt: int) -> int:
    """Qwen's published formula."""
    return max(2 ** (math.ceil(math.log2(prompt / trained)) + 1) - 1, 1)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        LinearScaling(factor=4),
        Llama3Scaling(factor=8, low=1, high=4, trained=64),
        Yarn(factor=4, trained=64),
    ],
    ids=repr,
)
def test_angles_that_do_not_look_at_the_prompt_are_not_moved(scaling: Scaling | None) -> None:
    assert {stretch(scaling, length) for length in LENGTHS} == {0}


@pytest.mark.parametrize("trained", [1, 7, 64, 128])
def test_qwens_prompts_of_different_alpha_have_different_numbers(trained: int) -> None:
    alphas = {stretch(QwenNTK(trained=trained), length): alpha(trained, length) for length in LENGTHS}
    for length in LENGTHS:
        assert alphas[stretch(QwenNTK(trained=trained), length)] == alpha(trained, length)


def test_qwens_numbers_change_just_after_the_powers_of_two() -> None:
    changes = [n for n, m in pairwise(LENGTHS) if stretch(QwenNTK(trained=64), n) != stretch(QwenNTK(trained=64), m)]
    assert changes == [64, 128, 256, 512]


def test_qwens_prompts_of_equal_alpha_have_equal_numbers() -> None:
    """Up to the trained length alpha is 1: a conversation that grows beyond half of it keeps its blocks."""
    assert {stretch(QwenNTK(trained=64), length) for length in range(1, 65)} == {0}


def test_a_dynamic_base_goes_by_every_token_beyond_the_trained_length() -> None:
    numbers = [stretch(DynamicNTK(factor=2, trained=64), length) for length in LENGTHS]
    assert numbers[:64] == [0] * 64
    assert len(set(numbers[64:])) == len(numbers[64:])
    assert 0 not in numbers[64:]
