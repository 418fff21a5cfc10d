"""The generator: the published answers, and noise that depends on what it shall and on nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.engine.philox import gumbel, philox

CPU = torch.device("cpu")
EULER = 0.5772156649
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""Random123's `kat_vectors` for philox4x32 with 10 rounds: counter, key, answer."""


def words(text: str) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_published_answers(counter: str, key: str, answer: str) -> None:
    assert philox(words(counter), words(key)).equal(words(answer))


def test_many_at_once_are_each_alone() -> None:
    counters, keys, answers = (torch.stack([words(one) for one in column], 1) for column in zip(*KNOWN, strict=True))
    assert philox(counters, keys).equal(answers)


def test_tokens_stand_where_they_are_documented() -> None:
    """Under seed and token 0 of index and choice 0, the noise is that of the first published answer."""
    uniform = (-(-gumbel([0], [0], [0], 4, CPU)).exp()).exp()
    assert uniform.mul(2**32).sub(0.5).round().long()[0].equal(words(KNOWN[0][2]))
    seed, choice, index = 0x0123456789ABCDEF, 7, 9
    answer = philox(torch.tensor([2, index, choice, 0]), torch.tensor([0x89ABCDEF, 0x01234567]))
    uniform = (-(-gumbel([seed], [choice], [index], 12, CPU)).exp()).exp()
    assert uniform.mul(2**32).sub(0.5).round().long()[0, 8:].equal(answer)


@given(
    seed=st.integers(0, 2**63 - 1),
    choice=st.integers(0, 127),
    index=st.integers(0, 2**31),
    vocabulary=st.integers(2, 9),
)
@settings(max_examples=60, deadline=None)
def test_noise_is_a_function_of_its_row(seed: int, choice: int, index: int, vocabulary: int) -> None:
    row = gumbel([seed], [choice], [index], vocabulary, CPU)
    assert row.shape == (1, vocabulary)
    assert row.isfinite().all()
    others = gumbel(
        [seed ^ 1, seed, seed, seed], [choice, choice + 1, choice, choice], [index, index, index + 1, index], 9, CPU
    )
    assert others[3:, :vocabulary].equal(row)
    for other in (*others[:3, :vocabulary], gumbel([seed ^ (1 << 40)], [choice], [index], vocabulary, CPU)[0]):
        assert (other != row[0]).all()


def test_noise_has_gumbels_moments_and_no_correlation() -> None:
    rows = 64
    noise = gumbel([*range(rows)] * 3, [0] * rows + [1] * rows + [0] * rows, [0] * 2 * rows + [1] * rows, 4001, CPU)
    assert noise.mean().item() == pytest.approx(EULER, abs=0.005)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)
    by_kind = noise.view(3, -1)
    correlation = torch.corrcoef(torch.cat([by_kind, by_kind[:, torch.arange(rows * 4001).roll(1)]]))
    assert (correlation - torch.eye(6)).abs().max() < 0.01


def test_the_largest_words_stay_finite() -> None:
    uniform = (torch.tensor([0, 2**32 - 1], dtype=torch.float64) + 0.5) * 2.0**-32
    assert (-(-uniform.log()).log()).isfinite().all()
