"""Logits to a token, by the Gumbel-max trick; the random numbers are a function of (seed, choice, output index, token).

So a request draws the same tokens wherever and whenever it goes on: after a hand-off, a preemption or a restart. The
token drawn is the one whose logit plus noise is the largest. Inverting the cumulative distribution with one number
would do as well in exact arithmetic, but sums the rounding of all tokens: the last bits of another batch changed 1 of
400 seeded answers. With a maximum they matter only where two tokens come out nearly equal, or one stands at the edge of
a cut.

Source: Maddison, Tarlow, Minka, "A* sampling" (2014), on Gumbel (1954).

Shapes: B rows to draw from, R of them that are treated alike, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.engine.penalties import penalise
from tandem.engine.philox import gumbel
from tandem.engine.sampled import Sampled
from tandem.engine.sampling import SamplingParams
from tandem.protocol.logprobs import TokenLogprobs

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have; vLLM's number."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One token to be drawn."""

    params: SamplingParams
    choice: int
    """Which of the request's answers it is for."""
    tokens: list[int]
    """Prompt and output so far; not changed."""
    prompt: int
    """Tokens of the prompt."""

    @property
    def index(self) -> int:
        """The token's place in the output."""
        return len(self.tokens) - self.prompt

    @property
    def too_early(self) -> bool:
        """Whether the answer may not end with this token."""
        return self.index < self.params.min_tokens and bool(self.params.end_token_ids)


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[Sampled]:
    """The token of every draw, with log-probabilities of the model's own logits where they were asked for.

    Args:
        logits: [B, V], any floating type; not changed.
        draws: B of them.
    """
    raw = logits.float()
    bent = _bent(raw, draws)
    tokens = bent.argmax(-1)
    if rows := [row for row, draw in enumerate(draws) if draw.params.temperature > 0]:
        tokens[rows] = _drawn(bent[rows], [draws[row] for row in rows])
    drawn = tokens.tolist()
    logprobs = _logprobs(raw, draws, tokens)
    return [Sampled(token, logprobs.get(row)) for row, token in enumerate(drawn)]


def _bent(raw: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits [B, V] with penalties, and without the ends that would come too early."""
    rows = [row for row, draw in enumerate(draws) if draw.params.penalised or draw.too_early]
    if not rows:
        return raw
    logits = raw.clone()
    for row in rows:
        draw = draws[row]
        penalise(logits[row], draw.params, draw.tokens, draw.prompt)
        if draw.too_early:
            logits[row, list(draw.params.end_token_ids)] = -torch.inf
    return logits


def _drawn(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Tokens [R] drawn at random from `logits` [R, V]."""
    params, device = [draw.params for draw in draws], logits.device
    temperatures = torch.tensor([[one.temperature] for one in params], dtype=torch.float64, device=device)
    # Relative to the best and in double: the smallest temperatures would overflow otherwise.
    scores = (logits.double() - logits.amax(-1, keepdim=True)) / temperatures
    for row, one in enumerate(params):
        if one.cut:
            scores[row] = _cut(scores[row], one)
    seeds, choices, indices = zip(*((draw.params.seed, draw.choice, draw.index) for draw in draws), strict=True)
    return (scores + gumbel(seeds, choices, indices, logits.shape[-1], device)).argmax(-1)


def _cut(scores: Tensor, params: SamplingParams) -> Tensor:
    """`scores` [V] with minus infinity for the tokens that top_k, top_p and min_p drop."""
    kept = min(params.top_k or len(scores), len(scores))
    values, tokens = scores.topk(kept)
    probabilities = values.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    keep = (before < params.top_p) & (probabilities >= params.min_p * probabilities[0])
    keep[0] = True  # the most likely token always stays
    return torch.full_like(scores, -torch.inf).scatter(0, tokens, values.masked_fill(~keep, -torch.inf))


def _logprobs(raw: Tensor, draws: Sequence[Draw], tokens: Tensor) -> dict[int, TokenLogprobs]:
    """By row, for those that ask."""
    asked = {row: draw.params.logprobs for row, draw in enumerate(draws) if draw.params.logprobs is not None}
    if not asked:
        return {}
    rows, most = list(asked), min(max(asked.values()), raw.shape[-1])
    table = raw[rows].log_softmax(-1).clamp(min=LEAST_LOGPROB)
    own = table.gather(-1, tokens[rows][:, None])[:, 0]
    values, ids = table.topk(most)
    columns = zip(rows, tokens[rows].tolist(), own.tolist(), ids.tolist(), values.tolist(), strict=True)
    return {
        row: TokenLogprobs(token, logprob, tuple(zip(best, theirs, strict=True))[: asked[row]])
        for row, token, logprob, best, theirs in columns
    }
