"""Sampling: the right distribution, the right cuts, and the same token wherever it is drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.engine.philox import gumbel
from tandem.engine.sampler import LEAST_LOGPROB, Draw, sample
from tandem.engine.sampling import SamplingParams

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.5])
CPU = torch.device("cpu")


def draw(index: int = 0, choice: int = 0, prompt: tuple[int, ...] = (4,), **params: object) -> Draw:
    """A draw after `index` tokens of output, all of them 3."""
    tokens = [*prompt, *[3] * index]
    return Draw(params=SamplingParams(**params), choice=choice, tokens=tokens, prompt=len(prompt))  # type: ignore[arg-type]


def draws(count: int, **params: object) -> list[int]:
    many = [draw(index, seed=7, **params) for index in range(count)]
    return [one.token for one in sample(LOGITS.repeat(count, 1), many)]


def test_temperature_zero_takes_the_best() -> None:
    assert set(draws(5, temperature=0.0)) == {1}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("params", "kept"), [({}, [0, 1, 2, 3, 4]), ({"top_k": 3}, [0, 1, 2]), ({"min_p": 0.2}, [0, 1, 2])]
)
def test_frequencies_follow_the_softmax(seed: int, params: dict[str, object], kept: list[int]) -> None:
    count, temperature = 8000, 1.5
    many = [draw(index=0, choice=choice, seed=seed, temperature=temperature, **params) for choice in range(count)]
    seen = torch.bincount(torch.tensor([one.token for one in sample(LOGITS.repeat(count, 1), many)]), minlength=5)
    expected = count * (LOGITS[kept] / temperature).softmax(-1)
    chi_square = ((seen[kept] - expected) ** 2 / expected).sum().item()
    assert seen[kept].sum() == count
    assert chi_square < 18.47, "0.1 % point of chi-square with 4 degrees of freedom"


def test_frequencies_over_seeds_and_a_large_vocabulary() -> None:
    count, logits = 6000, torch.linspace(0, 2, 1000)
    many = [draw(seed=seed, temperature=1.0) for seed in range(count)]
    tokens = torch.tensor([one.token for one in sample(logits.repeat(count, 1), many)])
    expected = logits.softmax(-1).view(20, 50).sum(-1) * count
    chi_square = ((torch.bincount(tokens // 50, minlength=20) - expected) ** 2 / expected).sum().item()
    assert chi_square < 43.82, "0.1 % point of chi-square with 19 degrees of freedom"


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
        ({"top_k": 2, "top_p": 0.7, "min_p": 0.5}, {1}),
        ({"min_tokens": 10**6, "end_token_ids": frozenset({1, 2})}, {0, 3, 4}),
    ],
)
def test_cuts(params: dict[str, object], allowed: set[int]) -> None:
    assert set(draws(400, temperature=1.0, **params)) == allowed


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-37, 5e-324])
@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9}, {"top_k": 4, "min_p": 0.1}])
def test_the_smallest_temperatures_take_the_best(temperature: float, cut: dict[str, object]) -> None:
    assert set(draws(50, temperature=temperature, **cut)) == {1}


def test_the_largest_temperatures_take_any() -> None:
    assert set(draws(200, temperature=1e300)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "logits", [[3e38, -3e38, 0.0], [-3e38, -3e38, 1.0], [3e38, 3e38, -1.0], [-torch.inf, 0.0, 0.0]]
)
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 1e-6, "top_p": 0.5},
        {"temperature": 1.0, "repetition_penalty": 1e4, "presence_penalty": 2.0},
        {"temperature": 1.0, "repetition_penalty": 1e-300, "frequency_penalty": -2.0},
    ],
)
def test_huge_logits_are_safe(logits: list[float], params: dict[str, object]) -> None:
    raw = torch.tensor([logits])
    one = Draw(params=SamplingParams(logprobs=3, **params), choice=0, tokens=[0, 1, 2, 0], prompt=2)  # type: ignore[arg-type]
    (sampled,) = sample(raw, [one])
    assert 0 <= sampled.token < 3
    assert sampled.logprobs is not None
    assert all(LEAST_LOGPROB <= value <= 0 for _, value in sampled.logprobs.top)
    assert raw.equal(torch.tensor([logits])), "the caller's logits are its own"


def test_end_tokens_are_free_after_the_minimum() -> None:
    params = {"min_tokens": 3, "end_token_ids": frozenset({1})}
    many = [draw(index, **params) for index in range(5)]
    assert [one.token for one in sample(LOGITS.repeat(5, 1), many)] == [2, 2, 2, 1, 1]


def test_the_token_is_the_documented_maximum() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    many = [
        draw(2, 5, seed=11, temperature=0.7),
        draw(0, 0, seed=2**62, temperature=2.0),
        draw(9, 1, seed=0, temperature=1.0),
    ]
    noise = gumbel([11, 2**62, 0], [5, 0, 1], [2, 0, 9], 50, CPU)
    expected = (logits.double() / torch.tensor([[0.7], [2.0], [1.0]]) + noise).argmax(-1).tolist()
    assert [one.token for one in sample(logits, many)] == expected


def test_the_batch_around_it_does_not_matter() -> None:
    one = draw(5, temperature=1.0, seed=3)
    alone = sample(LOGITS[None], [one])
    others = [draw(1), one, draw(temperature=2.0, seed=9, top_k=2), draw(3, repetition_penalty=2.0, logprobs=0)]
    assert sample(LOGITS.repeat(4, 1), others)[1] == alone[0]


@pytest.mark.parametrize("params", [{}, {"repetition_penalty": 1.3, "frequency_penalty": 0.5}])
def test_rounding_changes_no_draw_but_near_ties(params: dict[str, object]) -> None:
    rows, generator = 3000, torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(rows, 512, generator=generator)
    shaken = logits + 1e-6 * torch.randn(rows, 512, generator=generator)
    many = [draw(3, seed=seed, temperature=0.8, **params) for seed in range(rows)]
    before, after = sample(logits, many), sample(shaken, many)
    changed = [row for row in range(rows) if before[row] != after[row]]
    scores = logits.double() / 0.8 + gumbel(range(rows), [0] * rows, [3] * rows, 512, CPU)
    best = scores.topk(2).values
    assert all(best[row, 0] - best[row, 1] < 1e-4 for row in changed)
    assert len(changed) <= 2


@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=2, unique=True))
@settings(max_examples=20, deadline=None)
def test_seeds_and_choices_are_independent(seeds: list[int]) -> None:
    """Over 400 tokens of a flat distribution, two answers agree about as often as chance has it."""
    count, flat = 400, torch.zeros(400, 8)
    first, second, other = (
        [one.token for one in sample(flat, [draw(index, choice, seed=seed, temperature=1.0) for index in range(count)])]
        for seed, choice in ((seeds[0], 0), (seeds[1], 0), (seeds[0], 1))
    )
    for one in (second, other):
        assert 15 < sum(a == b for a, b in zip(first, one, strict=True)) < 95, "50 are expected, 7 is the deviation"


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(3))
    many = [
        draw(logprobs=0),
        draw(2, logprobs=5, temperature=0.5, top_k=3, repetition_penalty=1.5, presence_penalty=1.0, seed=4),
        draw(),
        draw(logprobs=20, temperature=1.0),
    ]
    sampled = sample(logits, many)
    expected = logits.log_softmax(-1)
    assert sampled[2].logprobs is None
    for row in (0, 1, 3):
        told, count = sampled[row].logprobs, many[row].params.logprobs
        assert told is not None
        assert told.token == sampled[row].token
        assert told.logprob == pytest.approx(expected[row, told.token].item(), abs=1e-6)
        values, ids = expected[row].topk(count or 0)
        assert [token for token, _ in told.top] == ids.tolist()
        assert [value for _, value in told.top] == pytest.approx(values.tolist(), abs=1e-6)


def test_more_logprobs_than_tokens() -> None:
    (one,) = sample(LOGITS[None], [draw(logprobs=20)])
    assert one.logprobs is not None
    assert [token for token, _ in one.logprobs.top] == [1, 2, 0, 4, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype: torch.dtype) -> None:
    assert sample(LOGITS[None].to(dtype), [draw(temperature=0.0, repetition_penalty=2.0)])[0].token == 1
