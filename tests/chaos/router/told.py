"""An answer put together from the bytes that came, streamed or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from chaos.router.load import Ask

LISTS: Final = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
"""Of a completion's log-probabilities."""


class WrongError(Exception):
    """What came is not an answer, or not the right one."""


@dataclass
class Choice:
    """What was told of one choice."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    prompt: list[list[int]] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    """One entry for each token; a completion's lists are turned into entries."""
    reasons: list[str] = field(default_factory=list)
    roles: int = 0


@dataclass
class Told:
    """What was told in all."""

    heads: set[tuple[Any, ...]] = field(default_factory=set)
    """`id`, `object`, `model` and `created` of every part; one answer has one."""
    choices: dict[int, Choice] = field(default_factory=dict)
    prompt: list[list[int]] = field(default_factory=list)
    usages: list[dict[str, Any]] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    rest: bytes = b""
    """What came after the last whole line."""

    @classmethod
    def of_stream(cls, body: bytes) -> Told:
        """Put a stream together.

        Raises:
            WrongError: It is no stream of events.
        """
        told = cls()
        *lines, told.rest = body.split(b"\n")
        for line in lines:
            told._line(line.strip())
        return told

    @classmethod
    def of_whole(cls, body: bytes) -> Told:
        """Read an answer that is not streamed.

        Raises:
            WrongError: It is no answer.
        """
        told = cls(done=True)
        told._part(_object(body))
        return told

    def _line(self, line: bytes) -> None:
        if not line or line.startswith(b":"):
            return
        if self.done:
            raise WrongError("something follows [DONE]")
        if not line.startswith(b"data:"):
            raise WrongError("a line that is no event")
        if (data := line[5:].strip()) == b"[DONE]":
            self.done = True
        else:
            self._part(_object(data))

    def _part(self, part: dict[str, Any]) -> None:
        self.parts.append(part)
        if "error" in part:
            self.errors.append(part["error"])
            return
        self.heads.add(tuple(part.get(name) for name in ("id", "object", "model", "created")))
        if part.get("usage") is not None:
            self.usages.append(part["usage"])
        if part.get("prompt_token_ids") is not None:
            self.prompt.append(part["prompt_token_ids"])
        for choice in part.get("choices", ()):
            self._choice(choice)

    def _choice(self, said: dict[str, Any]) -> None:
        choice = self.choices.setdefault(said.get("index", -1), Choice())
        inner = said.get("delta") or said.get("message") or {}
        text = said.get("text") or inner.get("content") or ""
        tokens = said.get("token_ids") or []
        if choice.reasons and (text or tokens or said.get("finish_reason")):
            raise WrongError("something follows a choice's finish_reason")
        choice.text += text
        choice.tokens += tokens
        choice.roles += "role" in inner
        choice.logprobs += logprob_entries(said.get("logprobs"))
        if said.get("prompt_token_ids") is not None:
            choice.prompt.append(said["prompt_token_ids"])
        if said.get("finish_reason") is not None:
            choice.reasons.append(said["finish_reason"])


def read(ask: Ask, body: bytes) -> Told:
    """What came for a request; a part of it where it broke off.

    Raises:
        WrongError: It cannot be read.
    """
    return Told.of_stream(body) if ask.wish.stream else Told.of_whole(body)


def logprob_entries(logprobs: dict[str, Any] | None) -> list[Any]:
    if not logprobs:
        return []
    if "content" in logprobs:
        return list(logprobs["content"] or ())
    return [dict(zip(LISTS, entry, strict=True)) for entry in _rows(logprobs)]


def _rows(logprobs: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    try:
        yield from zip(*(logprobs[name] for name in LISTS), strict=True)
    except (KeyError, TypeError, ValueError):
        raise WrongError("log-probabilities whose lists do not go together") from None


def _object(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise WrongError("something that is no JSON object") from None
