"""What is asked: every request is a function of the workload's seed, its number and the attempt at making it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final, Literal

Way = Literal["plain", "early", "reuse", "reserve", "resume", "together", "abandon"]

WAYS: Final[dict[Way, int]] = {
    "plain": 28,  # prefill, then decode with the ticket
    "early": 30,  # the decode leg starts with the prefill's first chunk
    "reuse": 9,  # the ticket is shown to a second decode instance when the first one was given up
    "reserve": 9,  # room on the decode instance is kept first
    "resume": 12,  # a finished answer is cut somewhere, and another instance goes on
    "together": 9,  # one instance does it all
    "abandon": 3,  # nobody uses the ticket
}

LONGEST: Final = 256
"""Tokens of prompt and answer."""

VOCABULARY: Final = 512


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request, and how the client goes about it."""

    number: int
    body: dict[str, Any]
    way: Way
    seed: int
    """Of what the client decides on the way."""
    leave: float | None = None
    """Seconds after which the client is gone."""
    deadline: float | None = None
    """Seconds that the request may take."""
    persistent: bool = False
    """Whether the client goes on elsewhere when an instance fails it."""


@dataclass(frozen=True)
class Workload:
    """Jobs."""

    seed: int

    def job(self, number: int, attempt: int) -> Job:
        """One job; another attempt gives another one that is no less random."""
        rng = random.Random(f"{self.seed}/{number}/{attempt}")
        way = rng.choices(list(WAYS), list(WAYS.values()))[0]
        prompt = self._prompt(rng)
        return Job(
            number=number,
            body=_body(rng, prompt, several=way != "resume" and rng.random() < 0.1),
            way=way,
            seed=rng.randrange(2**32),
            leave=rng.expovariate(rng.choice([0.4, 2.0])) if rng.random() < 0.15 else None,
            deadline=rng.uniform(0.02, 1.0) if rng.random() < 0.06 else None,
            persistent=rng.random() < 0.5,
        )

    def _prompt(self, rng: random.Random) -> list[int]:
        """Half of them begin as others do."""
        beginning = []
        if rng.random() < 0.6:
            which = rng.randrange(5)
            common = random.Random(f"{self.seed}/beginning/{which}")
            beginning = [common.randrange(3, VOCABULARY) for _ in range(20 + 25 * which)]
        longest = 60 if beginning else 180
        return [*beginning, *(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, longest)))]


def _body(rng: random.Random, prompt: list[int], *, several: bool) -> dict[str, Any]:
    count = min(rng.choice([rng.randint(1, 6), rng.randint(5, 40), rng.randint(30, 70)]), LONGEST - len(prompt))
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": rng.random() < 0.7}
    if several or rng.random() < 0.6:
        body |= {"temperature": rng.choice([0.5, 0.8, 1.0, 1.3]), "seed": rng.randrange(2**63)}
        cuts = {"top_p": rng.uniform(0.7, 1), "top_k": rng.randint(5, 200), "min_p": rng.uniform(0, 0.05)}
        body |= {name: value for name, value in cuts.items() if rng.random() < 0.25}
    if rng.random() < 0.2:
        body |= {"repetition_penalty": rng.uniform(1, 1.5), "presence_penalty": rng.uniform(-1, 1)}
    if rng.random() < 0.1:
        body["frequency_penalty"] = rng.uniform(-0.5, 1)
    if rng.random() < 0.2:
        body["stop"] = rng.sample(["e", "the", "in", " ", "re", "ar", "\n", "s."], rng.randint(1, 3))
    if rng.random() < 0.2:
        body["stop_token_ids"] = rng.sample(range(3, VOCABULARY), 16)
    if rng.random() < 0.2:
        body["min_tokens"] = rng.randint(1, count)
    if rng.random() < 0.2:
        body["priority"] = rng.randint(-2, 2)
    if several:
        body["n"] = 2
    return body
