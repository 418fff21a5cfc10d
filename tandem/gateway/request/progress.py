"""What a client has of one answer, put together from the events it got."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

Event = dict[str, Any]
PLAIN = frozenset(("text", "content"))
"""Where an engine puts what a model wrote as it is; all else that is text, a parser has made of it."""


class Choice(msgspec.Struct, frozen=True):
    """A choice in an event."""

    text: str | None = ""
    delta: Event | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: Event | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream."""

    id: str = ""
    created: int = 0
    model: str = ""
    choices: tuple[Choice, ...] | None = ()
    prompt_token_ids: list[int] | None = None
    usage: Event | None = None


@dataclass
class Progress:
    """How far an answer of one choice has come."""

    head: Chunk = Chunk()  # noqa: RUF009 - frozen
    """Its first event, whose id and time all others have."""
    prompt: list[int] | None = None
    """Ids of the prompt."""
    tokens: list[int] = field(default_factory=list)
    """Ids of the answer."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """What was told, by `places`, in pieces."""
    logprobs: int = 0
    """Tokens whose log-probabilities were told."""
    silent_tokens: int = 0
    """Of the last tokens, how many have brought no text: their characters are not whole yet, or may begin a stop."""
    unsure_tokens: int = 0
    """Of those before, so many have perhaps brought none: an event of several tokens does not show which did."""
    settled: tuple[int, int] = 0, 0
    """So many tokens have exactly so many characters: they ended with an event of one token that brought text."""
    finish_reason: str | None = None
    has_usage: bool = False
    events: int = 0

    @property
    def characters(self) -> int:
        """Code points of plain text."""
        return sum(len(piece) for place in PLAIN for piece in self.texts.get(place, ()))

    @property
    def is_counted(self) -> bool:
        """Whether its tokens are known; an instance may be asked to hide them."""
        return self.prompt is not None and bool(self.tokens)

    @property
    def parsed(self) -> str | None:
        """A place where something stands that a parser has made of what the model wrote, if there is one."""
        return next((place for place, pieces in self.texts.items() if place not in PLAIN and any(pieces)), None)

    def add(self, chunk: Chunk, *, whole: bool = True) -> None:
        """Note an event that the client has.

        Args:
            chunk: It.
            whole: Whether nothing of it was left out.
        """
        self.events += 1
        self.head = self.head if self.head.id else chunk
        self.prompt = self.prompt or chunk.prompt_token_ids
        self.has_usage |= chunk.usage is not None and not chunk.choices
        for choice in chunk.choices or ():
            self._add(choice, whole=whole)

    def _add(self, choice: Choice, *, whole: bool) -> None:
        tokens = choice.token_ids or ()
        self.prompt = self.prompt or choice.prompt_token_ids
        self.finish_reason = choice.finish_reason or self.finish_reason
        self.tokens += tokens
        self.logprobs += entries(choice.logprobs)
        told = False
        for place, text in texts(choice.text, choice.delta):
            self.texts.setdefault(place, []).append(text)
            told |= bool(text)
        self.silent_tokens = 0 if told else self.silent_tokens + len(tokens)
        if told and tokens:
            self.unsure_tokens = len(tokens) - 1
        if told and whole and len(tokens) == 1:
            self.settled = len(self.tokens), self.characters

    def forget_silent_tokens(self) -> None:
        """Forget the tokens that have brought no text, because somebody else will write them again."""
        del self.tokens[len(self.tokens) - self.silent_tokens :]
        self.silent_tokens = 0


def texts(text: str | None, delta: Event | None) -> Iterator[tuple[str, str]]:
    """What a choice's part of an event says, by place."""
    yield "text", text or ""
    for place, holder, name in places(delta):
        yield place, holder[name]


def places(delta: Event | None) -> Iterator[tuple[str, Event, str]]:
    """Where text stands in a chat's delta: the place's name, and the object and the field that hold it."""
    for name, value in (delta or {}).items():
        if isinstance(value, str) and name != "role":
            yield name, delta or {}, name
    for call in calls(delta):
        function = call.get("function")
        for name in ("name", "arguments"):
            if isinstance(function, dict) and isinstance(function.get(name), str):
                yield f"{called(call)}.{name}", function, name


def calls(delta: Event | None) -> list[Event]:
    """The calls of tools in a chat's delta."""
    found = (delta or {}).get("tool_calls")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def called(call: Event) -> str:
    """The name of a call's place."""
    return f"tool_calls[{call.get('index', 0)}]"


def entries(logprobs: Event | None) -> int:
    """Of how many tokens log-probabilities are told: a chat lists them as `content`, a completion as `tokens`."""
    lists = [(logprobs or {}).get(name) for name in ("content", "tokens")]
    return max(len(one) if isinstance(one, list) else 0 for one in lists)
