"""Tokens as a function of what is asked, so that every answer is known beforehand and nobody keeps a state.

The next token follows from all ids before it (prompt and output), from `repetition_penalty`, and, where they are set,

- with a temperature, from the seed plus the choice (as vLLM does) and the token's place *in this request's output*;
- with presence or frequency penalties, from the tokens *of this request's output*.

So a greedy answer goes on identically when its tokens are sent as a prompt, and one that is sampled or penalised does
not, because its output begins anew. That is how vLLM behaves [measured on 0.32]; `resume` is what goes on with all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal

from chaos.router.mock.language import END, ENDINGS, KINDS, OPENING, VOCABULARY, Detokenizer, Stops, shown, spelled
from chaos.router.mock.wish import Wish

Reason = Literal["stop", "length"]

RARITY: Final = 150
"""One of so many tokens ends the answer."""


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """One token's log-probability."""

    token: int
    value: float
    offset: int
    """Characters of the tokens before it."""
    top: tuple[tuple[int, float], ...]

    def told(self) -> dict[str, Any]:
        """As a chat tells it."""
        top = [_entry(token, value) for token, value in self.top]
        return {**_entry(self.token, self.value), "top_logprobs": top}


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one token, or the end, adds to an answer."""

    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[Logprob, ...] = ()
    reason: Reason | None = None


class Generation:
    """One choice in the making.

    Args:
        wish: What is asked for.
        choice: Which choice it is.
        salt: Not empty where the keys and values are not this prompt's: everything comes out differently.
    """

    def __init__(self, wish: Wish, choice: int, salt: bytes = b"") -> None:
        self._wish = wish
        self._choice = choice
        self._before = blake2b(salt, digest_size=8)
        self._last = 0
        for token in wish.prompt:
            self._follow(token)
        self._detokenizer, self._stops = Detokenizer(), Stops(wish.stops)
        self._offset = 0
        self.output: list[int] = []
        self.reason: Reason | None = None
        self._pending = "".join(self._take(token)[0] for token in wish.output)[wish.sent :]
        """Text of tokens that were generated elsewhere, which nobody has told yet."""

    def step(self) -> Step:
        """The next token; without one where what was given already is the whole answer."""
        if self.reason is not None:
            return Step(text=self._pending, reason=self.reason)
        number = self._number()
        token = self._token(number)
        pending, self._pending = self._pending, ""
        text, logprob = self._take(token, number)
        told = () if self._wish.logprobs is None else (logprob,)
        return Step(tokens=(token,), text=pending + text, logprobs=told, reason=self.reason)

    def all(self) -> Iterator[Step]:
        """Every step to the end."""
        while True:
            step = self.step()
            yield step
            if step.reason is not None:
                return

    def _take(self, token: int, number: int = 0) -> tuple[str, Logprob]:
        logprob = self._logprob(token, number)
        self.output.append(token)
        self._follow(token)
        enough = len(self.output) >= self._wish.min_tokens
        text = self._stops.push(self._detokenizer.push(token), check=enough)
        if enough and (self._stops.hit or (token == END and not self._wish.ignore_eos)):
            self.reason = "stop"
        elif len(self.output) >= self._wish.max_tokens:
            self.reason = "length"
        return text + (self._stops.rest() if self.reason else ""), logprob

    def _follow(self, token: int) -> None:
        self._before.update(token.to_bytes(4, "little"))
        self._last = token

    def _number(self) -> int:
        """Decides the next token."""
        wish, place = self._wish, len(self.output)
        chance = (wish.temperature, (wish.seed or 0) + self._choice, place) if wish.temperature else ()
        penalised = (wish.presence, wish.frequency, *self.output) if wish.presence or wish.frequency else ()
        digest = self._before.copy()
        digest.update(repr((wish.repetition, chance, penalised)).encode())
        return int.from_bytes(digest.digest(), "little")

    def _token(self, number: int) -> int:
        kind, word = number % KINDS, (number >> 8) % (VOCABULARY // KINDS - 1) + 1
        if (needed := OPENING.get(self._last % KINDS)) is not None and self._last >= KINDS:
            return word * KINDS + needed
        early = self._wish.ignore_eos or len(self.output) < self._wish.min_tokens
        if (number >> 24) % RARITY == 0 and not early:
            return END
        return word * KINDS + (kind if kind < len(ENDINGS) else kind & ~1)

    def _logprob(self, token: int, number: int) -> Logprob:
        value = -((number >> 32) % 4000) / 1000
        others = ((token + KINDS * (rank + 1)) % VOCABULARY for rank in range((self._wish.logprobs or 0) - 1))
        top = [(token, value), *((other, value - rank - 1) for rank, other in enumerate(others))]
        logprob = Logprob(token=token, value=value, offset=self._offset, top=tuple(top[: self._wish.logprobs or 0]))
        self._offset += len(shown(token))
        return logprob


def _entry(token: int, value: float) -> dict[str, Any]:
    return {"token": shown(token), "logprob": value, "bytes": list(spelled(token))}


@dataclass(frozen=True, kw_only=True)
class Whole:
    """One choice as a whole."""

    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[Logprob, ...]
    reason: Reason


def undisturbed(wish: Wish, choice: int) -> Whole:
    """The answer of one instance to which nothing happens."""
    steps = list(Generation(wish, choice).all())
    reason = steps[-1].reason
    assert reason is not None
    return Whole(
        tokens=tuple(token for step in steps for token in step.tokens),
        text="".join(step.text for step in steps),
        logprobs=tuple(one for step in steps for one in step.logprobs),
        reason=reason,
    )
