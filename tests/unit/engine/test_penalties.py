"""Penalties, against transformers' and against the formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from tandem.engine.penalties import penalise
from tandem.engine.sampling import SamplingParams

LOGITS = 4 * torch.randn(64, generator=torch.Generator().manual_seed(0))
PROMPT = [3, 60, 3, 17]
OUTPUT = [5, 5, 5, 17, 63]


def penalised(tokens: list[int] | None = None, prompt: int = len(PROMPT), **params: float) -> torch.Tensor:
    logits = LOGITS.clone()
    penalise(logits, SamplingParams(**params), PROMPT + OUTPUT if tokens is None else tokens, prompt)  # type: ignore[arg-type]
    return logits


@pytest.mark.parametrize("penalty", [1.05, 1.3, 0.7, 50.0])
def test_repetition_is_transformers(penalty: float) -> None:
    reference = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([PROMPT + OUTPUT]), LOGITS[None].clone())
    torch.testing.assert_close(penalised(repetition_penalty=penalty), reference[0])


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.5), (-2.0, 2.0), (1.5, -0.25)])
def test_presence_and_frequency_count_the_output(presence: float, frequency: float) -> None:
    counts = np.bincount(OUTPUT, minlength=len(LOGITS))
    expected = LOGITS.numpy() - presence * (counts > 0) - frequency * counts
    got = penalised(presence_penalty=presence, frequency_penalty=frequency)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_all_together_repetition_first() -> None:
    seen, counts = np.isin(np.arange(64), PROMPT + OUTPUT), np.bincount(OUTPUT, minlength=64)
    values = LOGITS.numpy()
    expected = (
        np.where(seen, np.where(values > 0, values / 1.2, values * 1.2), values) - 0.3 * (counts > 0) - 0.1 * counts
    )
    got = penalised(repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_what_asks_for_nothing_changes_nothing() -> None:
    assert penalised().equal(LOGITS)
    assert penalised(PROMPT, presence_penalty=2.0, frequency_penalty=2.0).equal(LOGITS), "no output yet"
