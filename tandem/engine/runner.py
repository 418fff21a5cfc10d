"""One step's arithmetic: the plan's tokens through the decoder over the paged cache, and what is sampled from it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from tandem.engine.plan import Plan, Work
from tandem.engine.sampled import Sampled
from tandem.engine.sampler import Draw, sample
from tandem.engine.step import Step
from tandem.errors import ProcessError
from tandem.kv.paged import Chunk


class Model(Protocol):
    """What computes a step: one process, or several that hold a part each."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model knows."""

    def logits(self, step: Step) -> Tensor | None:
        """[rows, V], or None where no row is wanted; then keys and values lie in the cache when it returns.

        Raises:
            ProcessError: A rank died.
        """

    def watch(self, on_death: Callable[[ProcessError], object]) -> None:
        """Have `on_death` called, from a thread of its own, when a process that holds a part dies."""

    def close(self) -> None:
        """Let go of processes and memory; no step may be under way."""


class Runner:
    """Runs plans.

    Args:
        model: Over the instance's cache.
        draws_at_once: Rows of logits that are sampled from together, so that many choices of many requests need no
            more memory than as many requests.
    """

    def __init__(self, model: Model, draws_at_once: int = 64) -> None:
        self.model = model
        self._draws_at_once = draws_at_once

    @torch.inference_mode()
    def run(self, plan: Plan) -> list[list[Sampled]]:
        """Compute the plan: for each of its works that samples, in order, the next token of every choice it draws."""
        logits = self.model.logits(_step(plan))
        if logits is None:
            return []
        draws = [_draws(work) for work in plan.works if work.samples]
        sampled = iter(self._sampled(logits, [(row, draw) for row, drawn in enumerate(draws) for draw in drawn]))
        return [[next(sampled) for _ in drawn] for drawn in draws]

    def _sampled(self, logits: Tensor, draws: list[tuple[int, Draw]]) -> list[Sampled]:
        """The token of every draw from the row beside it."""
        sampled = []
        for first in range(0, len(draws), self._draws_at_once):
            rows, some = zip(*draws[first : first + self._draws_at_once], strict=True)
            sampled += sample(logits[torch.tensor(rows, device=logits.device)], some)
        return sampled


def _step(plan: Plan) -> Step:
    works = plan.works
    ends = accumulate(work.count for work in works)
    return Step(
        tokens=[token for work in works for token in work.sequence.token_ids[work.start : work.start + work.count]],
        chunks=[_chunk(work) for work in works],
        rows=[end - 1 for end, work in zip(ends, works, strict=True) if work.samples],
    )


def _chunk(work: Work) -> Chunk:
    prompt = len(work.sequence.request.prompt)
    return Chunk(blocks=work.blocks, start=work.start, count=work.count, prompt=prompt)


def _draws(work: Work) -> list[Draw]:
    """What is drawn from the work's last row: one token, or the first one of every choice."""
    sequence = work.sequence
    choices = sequence.request.choices if sequence.fork else (sequence.choice,)
    prompt = len(sequence.request.prompt)
    return [
        Draw(params=sequence.sampling, choice=choice, tokens=sequence.token_ids, prompt=prompt) for choice in choices
    ]
