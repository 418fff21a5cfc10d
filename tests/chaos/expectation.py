"""What a request's answer must be: from one engine alone, and from a plain forward pass without any cache.

The engine's answer is put behind the prompt and goes through the decoder once, as training would do it. If at every
place the token that this draws is the one that stands there, the plain decoder generates the same answer, by induction.

That is a statement about sums in another order, so it is certain only where no two tokens come out nearly equal. The
margin of an answer is the least distance, in logits, by which its tokens won; requests under the bound are not asked.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chaos.workload import Job, Workload
from tandem.engine.assembly import assemble
from tandem.engine.config import InstanceConfig
from tandem.engine.penalties import penalise
from tandem.engine.philox import gumbel
from tandem.engine.request import Request
from tandem.engine.sampler import Draw, sample
from tandem.engine.sampling import SamplingParams
from tandem.model.context import CausalContext
from tandem.model.folder import load
from tandem.protocol.openai import CompletionRequest, parse
from tandem.text.detokenizer import HALF
from tandem.text.tokenizer import Tokenizer

BOUND = 1e-4
"""Least margin, in logits: some ten times what another order of summation moves them."""

BATCH = 24
"""Answers in one plain forward pass."""


@dataclass(frozen=True)
class Answer:
    """One choice, whole."""

    tokens: list[int]
    text: str
    reason: str


@dataclass(frozen=True)
class Expected:
    """A job and its answers, by choice."""

    job: Job
    answers: list[Answer]
    margin: float


class Expectation:
    """Answers jobs alone.

    Args:
        folder: The model's.
    """

    def __init__(self, folder: Path) -> None:
        config = InstanceConfig(
            model=folder, device="cpu", kv_cache_gib=0.05, max_num_seqs=48, max_num_batched_tokens=1024
        )
        driver, server, _ = assemble(config, 1)
        self._engine, self._intake = driver.engine, server._intake
        self._decoder = load(folder, torch.device("cpu"))
        self._tokenizer = Tokenizer.from_folder(folder)

    def settle(self, workload: Workload, count: int) -> list[Expected]:
        """That many jobs with their answers, none of which is decided by rounding.

        Raises:
            AssertionError: The engine alone disagrees with the plain decoder, and not by rounding.
        """
        settled: dict[int, Expected] = {}
        for attempt in range(20):
            jobs = [workload.job(number, attempt) for number in range(count) if number not in settled]
            for one in self._expected(jobs):
                if one.margin > BOUND:
                    settled[one.job.number] = one
            if len(settled) == count:
                return [settled[number] for number in range(count)]
        raise AssertionError("some jobs are always decided by rounding")

    def _expected(self, jobs: list[Job]) -> Iterator[Expected]:
        requests = [
            self._intake.completion(parse(json.dumps(job.body).encode(), CompletionRequest), "r", 0.0) for job in jobs
        ]
        answers = self._together(requests)
        margins = self._margins(requests, answers)
        for job, request in zip(jobs, requests, strict=True):
            own = answers[request.id]
            if margins[request.id] > BOUND:
                for answer in own:
                    check_end(answer, request.sampling, self._tokenizer.decode)
            yield Expected(job, own, margins[request.id])

    def _together(self, requests: list[Request]) -> dict[str, list[Answer]]:
        """Of one engine that has nothing else to do, by request."""
        taken: dict[str, dict[int, list[Any]]] = {}
        for request in requests:
            self._engine.submit(request)
            taken[request.id] = {choice: [] for choice in request.choices}
        left = sum(len(request.choices) for request in requests)
        while left:
            plan, _, updates = self._engine.plan()
            updates += self._engine.commit(plan, self._engine.run(plan) if plan.works else [])
            for name, update in updates:
                taken[name][update.choice].append(update)
                left -= update.reason is not None
        return {name: [_answer(updates) for updates in choices.values()] for name, choices in taken.items()}

    @torch.inference_mode()
    def _margins(self, requests: list[Request], answers: dict[str, list[Answer]]) -> dict[str, float]:
        """By request."""
        rows = [(request, choice) for request in requests for choice in request.choices]
        rows.sort(key=lambda row: len(row[0].prompt))
        margins = {request.id: torch.inf for request in requests}
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            texts = [[*request.prompt, *answers[request.id][choice].tokens] for request, choice in some]
            logits = self._plain(texts)
            for (request, choice), text, of_text in zip(some, texts, logits, strict=True):
                margin = _margin(request, choice, text, of_text)
                margins[request.id] = min(margins[request.id], margin)
        return margins

    def _plain(self, texts: list[list[int]]) -> Tensor:
        """Logits [B, T, V] of whole texts, side by side; what stands behind a shorter one does not reach it."""
        longest = max(map(len, texts))
        tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        return self._decoder(tokens, CausalContext(len(texts), longest, torch.device("cpu")))


def check_end(answer: Answer, sampling: SamplingParams, decode: Callable[[list[int]], str]) -> None:
    """Check that an answer ends where its stop strings, end tokens and limit say, and not before or after.

    Args:
        answer: It.
        sampling: What was asked for.
        decode: Tokens to text; half a character at the end is shown as U+FFFD.

    Raises:
        AssertionError: It does not.
    """
    tokens, least = answer.tokens, sampling.min_tokens
    assert least <= len(tokens) <= sampling.max_tokens
    ends = [place for place, one in enumerate(tokens, 1) if place >= least and one in sampling.end_token_ids]
    assert ends in ([], [len(tokens)]), f"it went on after an end token at {ends}"
    before = decode(tokens[:-1])
    text = before if ends else decode(tokens)
    exempt = len(decode(tokens[: max(least - 1, 0)]).rstrip(HALF))
    assert _found(sampling.stops, before, exempt) is None, f"it went on after a stop string of {sampling.stops}"
    stop = _found(sampling.stops, text, exempt)
    if stop is None and not ends:
        assert len(tokens) == sampling.max_tokens, "it ended for no reason"
    assert answer.reason == ("length" if stop is None and not ends else "stop")
    assert answer.text == text[:stop]


def _found(stops: tuple[str, ...], text: str, start: int) -> int | None:
    """Where the first of the stop strings begins."""
    return min((at for stop in stops if (at := text.find(stop, start)) >= 0), default=None)


def _answer(updates: list[Any]) -> Answer:
    tokens = [token for update in updates for token in update.tokens]
    return Answer(tokens, "".join(update.text for update in updates), updates[-1].reason)


def _margin(request: Request, choice: int, text: list[int], logits: Tensor) -> float:
    """The least distance by which an answer's tokens won.

    Raises:
        AssertionError: The plain decoder draws another token, and not by rounding.
    """
    prompt = len(request.prompt)
    draws = [
        Draw(params=request.sampling, choice=choice, tokens=text[:place], prompt=prompt)
        for place in range(prompt, len(text))
    ]
    rows = logits[prompt - 1 : len(text) - 1]
    plain = torch.tensor([one.token for one in sample(rows, draws)])
    distances = _distances(rows, draws, plain)
    for place in (plain != torch.tensor(text[prompt:])).nonzero()[:, 0].tolist()[:1]:
        least = float(distances[place])
        assert least <= BOUND, f"{request}: the plain decoder has {int(plain[place])} at {place}, by {least}"
        return least
    return float(distances.min())


def _distances(rows: Tensor, draws: list[Draw], winners: Tensor) -> Tensor:
    """How far the second best stayed behind, in logits [B]; tokens at the edge of a cut count as if they were in."""
    params = draws[0].params
    bent = rows.clone()
    for row, draw in zip(bent, draws, strict=True):
        penalise(row, params, draw.tokens, draw.prompt)
        if draw.too_early:
            row[list(params.end_token_ids)] = -torch.inf
    temperature = params.temperature or 1.0
    scores = (bent.double() - bent.amax(-1, keepdim=True)) / temperature
    noisy = scores
    if params.temperature:
        seeds, choices, indices = zip(*((params.seed, draw.choice, draw.index) for draw in draws), strict=True)
        noisy = scores + gumbel(seeds, choices, indices, rows.shape[-1], rows.device)
    inside, near = (_kept(scores, params, slack) for slack in (-BOUND, BOUND))
    certain = inside.gather(-1, winners[:, None])[:, 0]
    best = noisy.gather(-1, winners[:, None])[:, 0]
    others = noisy.masked_fill(~near, -torch.inf).scatter(-1, winners[:, None], -torch.inf).amax(-1)
    return torch.where(certain, (best - others) * temperature, 0.0)


def _kept(scores: Tensor, params: Any, slack: float) -> Tensor:
    """Which tokens the cuts keep [B, V], when each edge is moved outwards by `slack`."""
    kept = torch.ones_like(scores, dtype=torch.bool)
    if params.temperature == 0 or not params.cut:
        return kept
    ordered, order = scores.sort(-1, descending=True)
    if 0 < params.top_k < scores.shape[-1]:
        ordered = ordered.masked_fill(ordered < ordered[:, params.top_k - 1 : params.top_k] - slack, -torch.inf)
        if slack < 0:
            ordered[:, params.top_k :] = -torch.inf
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    keep = (before < params.top_p + slack) & (probabilities >= params.min_p * probabilities[:, :1] * (1 - slack))
    keep &= ordered > -torch.inf
    keep[:, 0] = True
    return kept.scatter(-1, order, keep)
