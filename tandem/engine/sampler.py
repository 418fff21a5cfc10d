"""Logits to a token. The random number is a function of (seed, choice, output index), never a state.

So a request draws the same tokens wherever and whenever it goes on: after a hand-off, a preemption or a restart.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tandem.engine.sampling import SamplingParams


def uniform(seed: int, choice: int, index: int) -> float:
    """The number in [0, 1) for output token `index` of one choice (Philox 4x64; Salmon et al., 2011)."""
    word = int(np.random.Philox(key=seed, counter=[index, choice, 0, 0]).random_raw())
    return (word >> 11) * 2.0**-53


def sample(logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]) -> list[int]:
    """The next token of every sequence.

    Args:
        logits: [B, V], any floating type.
        params: How each sequence samples.
        indices: Each sequence's output index: how many tokens it has generated so far.
    """
    logits = logits.float()
    for row, one, index in zip(logits, params, indices, strict=True):
        if index < one.min_tokens and one.end_token_ids:
            row[list(one.end_token_ids)] = -torch.inf
    greedy: list[int] = logits.argmax(-1).tolist()
    return [
        best if one.temperature == 0 else _draw(row, one, uniform(one.seed, 0, index))
        for best, row, one, index in zip(greedy, logits, params, indices, strict=True)
    ]


def _draw(logits: Tensor, params: SamplingParams, number: float) -> int:
    """Invert the cumulative distribution of the tokens kept, most likely first."""
    kept = min(params.top_k, len(logits)) if params.top_k else len(logits)
    values, tokens = logits.topk(kept)
    # Relative to the best and in double: the smallest temperatures would overflow otherwise.
    probabilities = ((values - values[0]).double() / params.temperature).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    keep = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
    keep[0] = True  # the most likely token always stays
    cumulative = (probabilities * keep).cumsum(-1)
    place = torch.searchsorted(cumulative, number * cumulative[-1], right=True)
    return int(tokens[min(int(place), kept - 1)])
