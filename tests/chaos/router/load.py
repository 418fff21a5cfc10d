"""What clients ask for: requests of every kind, each a function of the seed and its number, with the answer known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from chaos.router.mock.generation import Whole, undisturbed
from chaos.router.mock.language import tokenized
from chaos.router.mock.wire import MODEL
from chaos.router.mock.wish import Wish

Body = dict[str, Any]

WORDS: Final = (
    "the",
    "of",
    "and",
    "a",
    "ship",
    "sails",
    "under",
    "grey",
    "skies",
    "while",
    "nobody",
    "counts",
    "stars",
)


@dataclass(frozen=True)
class Ask:
    """One request."""

    number: int
    kind: str
    body: Body

    @property
    def chat(self) -> bool:
        return "messages" in self.body

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    @cached_property
    def wish(self) -> Wish:
        return Wish.read(self.body, chat=self.chat, dialect="native")

    @cached_property
    def expected(self) -> dict[int, Whole]:
        """The undisturbed answer, by choice."""
        return {choice: undisturbed(self.wish, choice) for choice in self.wish.choices}


def _seeded(rng: random.Random) -> Body:
    return {"temperature": rng.choice([0.5, 0.8, 1.2]), "seed": rng.randrange(2**31)}


def _usage(_: random.Random) -> Body:
    return {"stream": True, "stream_options": {"include_usage": True}}


def _streamed(_: random.Random) -> Body:
    return {"stream": True}


def _penalised(rng: random.Random) -> Body:
    return {"presence_penalty": rng.randint(1, 15) / 10, "frequency_penalty": rng.randint(1, 10) / 10}


def _repetition(rng: random.Random) -> Body:
    return {"repetition_penalty": rng.randint(105, 150) / 100}


def _fixed(**fields: Any) -> Callable[[random.Random], Body]:
    return lambda _: fields


@dataclass(frozen=True)
class Kind:
    """A kind of request: what its body is put together from."""

    name: str
    chat: bool
    parts: tuple[Callable[[random.Random], Body], ...]
    stop: bool = False
    ids: bool = False
    """The prompt is given as token ids."""


KINDS: Final = (
    Kind("completion, usage", False, (_usage,)),
    Kind("chat", True, (_streamed,)),
    Kind("completion, whole", False, ()),
    Kind("chat, whole, seed", True, (_seeded,)),
    Kind("completion, seed", False, (_streamed, _seeded)),
    Kind("chat, stop", True, (_streamed,), stop=True),
    Kind("chat, penalties, usage", True, (_usage, _penalised)),
    Kind("completion, n=2, seed, usage", False, (_usage, _seeded, _fixed(n=2))),
    Kind("completion, logprobs", False, (_streamed, _fixed(logprobs=2))),
    Kind("chat, logprobs", True, (_streamed, _fixed(logprobs=True, top_logprobs=2))),
    Kind("chat, token ids, usage", True, (_usage, _fixed(return_token_ids=True))),
    Kind("completion of ids, token ids", False, (_streamed, _fixed(return_token_ids=True)), ids=True),
    Kind("completion, whole, stop", False, (), stop=True),
    Kind("chat, whole, repetition, logprobs", True, (_repetition, _fixed(logprobs=True))),
    Kind("chat, whole, n=2, seed", True, (_seeded, _fixed(n=2))),
    Kind("chat, repetition, min_tokens", True, (_streamed, _repetition, _fixed(min_tokens=12))),
)


def asks(count: int, seed: int) -> list[Ask]:
    """So many requests, of all kinds in turn."""
    return [ask(number, seed) for number in range(count)]


def ask(number: int, seed: int, kind: Kind | None = None) -> Ask:
    """One request."""
    rng = random.Random(f"{seed}/{number}")
    kind = kind or KINDS[number % len(KINDS)]
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(8, 60))) + f" {number}"
    body: Body = {"model": MODEL, "temperature": 0, **_prompt(kind, text), "max_tokens": rng.randint(24, 44)}
    for part in kind.parts:
        body |= part(rng)
    if kind.stop:
        body["stop"] = _stop(body, rng, chat=kind.chat)
    return Ask(number, kind.name, body)


def _prompt(kind: Kind, text: str) -> Body:
    if kind.chat:
        return {"messages": [{"role": "system", "content": "You sail."}, {"role": "user", "content": text}]}
    return {"prompt": tokenized(text) if kind.ids else text}


def _stop(body: Body, rng: random.Random, *, chat: bool) -> list[str]:
    """Two strings that the answer holds, from within a token to within another, and one that it does not."""
    text = undisturbed(Wish.read(body, chat=chat, dialect="native"), 0).text
    middle = len(text) // 2
    cuts = (rng.randrange(middle, max(len(text) - 8, middle + 1)) for _ in range(2))  # a few answers are very short
    found = [text[at : at + rng.randint(5, 8)] for at in cuts]
    return [*filter(None, found), "never said"]
