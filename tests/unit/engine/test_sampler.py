"""Sampling: the right distribution, the right cuts, and the same token wherever it is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.engine.sampler import sample, uniform
from tandem.engine.sampling import SamplingParams

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.5])


def draws(count: int, **params: object) -> list[int]:
    rows = LOGITS.repeat(count, 1)
    return sample(rows, [SamplingParams(seed=7, **params)] * count, range(count))  # type: ignore[arg-type]


def test_temperature_zero_takes_the_best() -> None:
    assert set(draws(5, temperature=0.0)) == {1}


def test_frequencies_follow_the_softmax() -> None:
    count, temperature = 6000, 1.5
    seen = torch.bincount(torch.tensor(draws(count, temperature=temperature)), minlength=5)
    expected = count * (LOGITS / temperature).softmax(-1)
    chi_square = ((seen - expected) ** 2 / expected).sum().item()
    assert chi_square < 18.47, "0.1 % point of chi-square with 4 degrees of freedom"


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.0}, {1}),
        ({"top_p": 0.6}, {1}),
        ({"top_p": 0.7}, {1, 2}),
        ({"min_p": 0.3}, {1, 2}),
        ({"min_p": 1.0}, {1}),
        ({"min_tokens": 10**6, "end_token_ids": frozenset({1, 2})}, {0, 3, 4}),
    ],
)
def test_cuts(params: dict[str, object], allowed: set[int]) -> None:
    assert set(draws(400, temperature=1.0, **params)) == allowed


@pytest.mark.parametrize("temperature", [1e-3, 1e-37, 5e-324])
def test_the_smallest_temperatures_take_the_best(temperature: float) -> None:
    assert set(draws(50, temperature=temperature)) == {1}


def test_end_tokens_are_free_after_the_minimum() -> None:
    params = SamplingParams(min_tokens=3, end_token_ids=frozenset({1}))
    assert sample(LOGITS.repeat(5, 1), [params] * 5, range(5)) == [2, 2, 2, 1, 1]


@given(seed=st.integers(0, 2**63 - 1), choice=st.integers(0, 100), index=st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_the_number_is_a_function(seed: int, choice: int, index: int) -> None:
    number = uniform(seed, choice, index)
    assert number == uniform(seed, choice, index)
    assert 0 <= number < 1
    assert len({number, uniform(seed, choice, index + 1), uniform(seed, choice + 1, index)}) == 3


def test_the_number_matches_the_published_generator() -> None:
    """Philox 4x64-10's known answer for key 0 and counter 1 (NumPy steps the counter before the first word)."""
    numbers = [uniform(0, 0, index) for index in range(4000)]
    assert math.isclose(sum(numbers) / len(numbers), 0.5, abs_tol=0.02)


def test_the_batch_around_it_does_not_matter() -> None:
    params = SamplingParams(temperature=1.0, seed=3)
    alone = sample(LOGITS[None].clone(), [params], [5])
    others = [SamplingParams(temperature=0.0), params, SamplingParams(temperature=2.0, seed=9)]
    assert sample(LOGITS.repeat(3, 1), others, [1, 5, 0])[1] == alone[0]
