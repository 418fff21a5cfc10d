"""What real instances answer while nothing is done to them: nobody knows it beforehand, as with mocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import aiohttp

from chaos.router.client import Exchange, exchange, session
from chaos.router.judge import Verdict, failure, refusal
from chaos.router.leaks import leaks
from chaos.router.load import Ask
from chaos.router.told import Choice, Told, WrongError, read

IDS: Final = 500
"""Of the tokens that the model knows, so many are used in prompts of ids."""
AT_ONCE: Final = 8
CALM_S: Final = 120.0
NEAR: Final = 0.02
"""Log-probabilities of one token in two batches: sums are added up in another order."""


class Calm:
    """Undisturbed answers, each asked for once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Ask, Told]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def answers(self, url: str, wanted: Sequence[Ask]) -> list[tuple[Ask, Told]]:
        """Each request as it goes with real instances, and its answer.

        Raises:
            WrongError: One is no whole answer.
        """
        async with session() as http:
            await asyncio.gather(*(self._ask(http, url, one) for one in wanted if one.number not in self._known))
        return [self._known[one.number] for one in wanted]

    async def _ask(self, http: aiohttp.ClientSession, url: str, ask: Ask) -> None:
        async with self._turn:
            prompt = ask.body.get("prompt")
            if isinstance(prompt, list):
                ask = replace(ask, body=ask.body | {"prompt": [3 + one % IDS for one in prompt]})
            if "stop" in ask.body:
                ask = await self._stopped(http, url, ask)
            self._known[ask.number] = ask, await self._told(http, url, ask)

    async def _stopped(self, http: aiohttp.ClientSession, url: str, ask: Ask) -> Ask:
        """The request with stop strings that its answer holds."""
        free = replace(ask, body={name: value for name, value in ask.body.items() if name != "stop"})
        text = (await self._told(http, url, free)).choices[0].text
        middle = len(text) // 2
        return replace(ask, body=free.body | {"stop": [text[middle : middle + 6] or "x", "never said"]})

    async def _told(self, http: aiohttp.ClientSession, url: str, ask: Ask) -> Told:
        got = await exchange(http, url, ask, CALM_S)
        if got.status != 200 or got.end != "whole":
            raise WrongError(f"{ask.kind}: {got.status}, {got.end}, {got.body[:500]!r}")
        return read(ask, got.body)


def compare(ask: Ask, got: Exchange, calm: Told, secrets: Sequence[str]) -> Verdict:
    """Judge an answer by the undisturbed one."""
    if got.status is not None and got.status != 200 and got.end == "whole":
        return refusal(ask, got, secrets, may_refuse=False)
    if not ask.wish.stream and got.end != "whole":
        return failure(got, Told()) or Verdict("failed", got.end)
    try:
        told = read(ask, got.body)
    except WrongError as error:
        return Verdict("wrong", str(error))
    whole = failure(got, told) is None
    wrong = next(_differences(told, calm, whole=whole), None)
    if wrong is not None:
        return Verdict("wrong", wrong)
    if (failed := failure(got, told)) is not None:
        return failed
    leaked = leaks(ask, got, told.parts, secrets)
    return Verdict("leaked", ", ".join(leaked)) if leaked else Verdict("ok")


def _differences(told: Told, calm: Told, *, whole: bool) -> Iterator[str]:
    if len(told.heads) > 1:
        yield "several ids"
    for index, choice in told.choices.items():
        if (expected := calm.choices.get(index)) is None:
            yield "a choice that was not asked for"
        else:
            yield from _of_choice(choice, expected, whole=whole)
    if whole and (told.done, _counts(told), told.prompt) != (calm.done, _counts(calm), calm.prompt):
        yield "another end, usage or prompt"
    if whole and told.choices.keys() != calm.choices.keys():
        yield "a choice is missing"


def _counts(told: Told) -> list[dict[str, Any]]:
    """Without what was found in a cache: that depends on who was asked before, and here nobody knows who was."""
    return [{name: count for name, count in usage.items() if name != "prompt_tokens_details"} for usage in told.usages]


def _of_choice(choice: Choice, expected: Choice, *, whole: bool) -> Iterator[str]:
    if not expected.text.startswith(choice.text) or (whole and choice.text != expected.text):
        yield f"another text: {choice.text!r}, undisturbed {expected.text!r}"
    if expected.tokens[: len(choice.tokens)] != choice.tokens:
        yield "other token ids"
    for one, other in zip(choice.logprobs, expected.logprobs, strict=False):
        if not _alike(one, other):
            yield f"other log-probabilities: {one}, undisturbed {other}"
            return
    if whole and (len(choice.tokens), len(choice.logprobs), choice.reasons, choice.roles, choice.prompt) != (
        len(expected.tokens), len(expected.logprobs), expected.reasons, expected.roles, expected.prompt,
    ):  # fmt: skip
        yield "something is missing or doubled"


def _alike(one: Any, other: Any) -> bool:
    """The same up to rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < NEAR
    if isinstance(one, dict) and isinstance(other, dict):
        # Alternatives that are equally likely may change places.
        names = one.keys() & other.keys() - {"top_logprobs"}
        return one.keys() == other.keys() and all(_alike(one[name], other[name]) for name in names)
    return type(one) is type(other) and (one == other or isinstance(one, dict))
