"""Penalties: logits of tokens that the text has already are lowered, or raised. They follow from the tokens alone.

Sources: repetition from Keskar et al., "CTRL" (2019), as transformers and vLLM apply it; presence and frequency from
the OpenAI API reference.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tandem.engine.sampling import SamplingParams

LARGEST = torch.finfo(torch.float32).max


def penalise(logits: Tensor, params: SamplingParams, tokens: Sequence[int], prompt: int) -> None:
    """Apply a request's penalties in place.

    Args:
        logits: [V], float32.
        params: With the penalties.
        tokens: Prompt and output so far; repetition counts all of them.
        prompt: Tokens of the prompt; presence and frequency count those after them.
    """
    if params.repetition_penalty != 1:
        _repetition(logits, params.repetition_penalty, set(tokens))
    if params.presence_penalty or params.frequency_penalty:
        counts = Counter(tokens[prompt:])
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        logits[list(counts)] -= params.presence_penalty + params.frequency_penalty * times


def _repetition(logits: Tensor, penalty: float, seen: Iterable[int]) -> None:
    places = torch.tensor(list(seen), device=logits.device)
    # In double, and brought back into float's range: an infinite logit would make the others' differences no numbers.
    values = logits[places].double()
    values = torch.where(values > 0, values / penalty, values * penalty)
    logits[places] = values.clamp(-LARGEST, LARGEST).float()
