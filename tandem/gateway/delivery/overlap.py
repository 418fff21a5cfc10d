"""What a client has already of an answer that is written again: it is compared, and left out.

    the client has    |tokens.......|text...........|
    written again     |..|...|..|...|...|...|...|..▶     events are cut wherever they straddle the end of what there is
                       compared      told

Tokens, log-probabilities and each text (plain, reasoning, a tool's arguments) are cut by themselves, because text lags
behind its tokens and nobody promises that two instances cut an answer into the same events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from tandem.errors import RequestError
from tandem.gateway.delivery.exactness import cannot
from tandem.gateway.request.progress import Chunk, Event, Progress, called, calls, entries, places


class Overlap:
    """Goes through the events of a further worker, and notes what it lets through.

    Args:
        progress: What the client has; it grows.
        tokens: The further worker begins after so many of its tokens,
        characters: and after so many characters of its text.
        prompt: The ids that the worker must have taken as its prompt; None where it need not say.
    """

    def __init__(
        self, progress: Progress, *, tokens: int = 0, characters: int = 0, prompt: list[int] | None = None
    ) -> None:
        self._progress = progress
        self._prompt = prompt
        self._at = tokens
        self._tokens = list(progress.tokens)
        self._texts = {place: "".join(pieces) for place, pieces in progress.texts.items()}
        self._told = dict.fromkeys(self._texts, characters)
        self._calls = {place.partition(".")[0] for place in self._texts}
        self._logprobs = max(progress.logprobs - tokens, 0)

    def news(self, event: Event) -> Event | None:
        """What an event says that the client does not have; None where that is nothing. The event is changed.

        Raises:
            RequestError: 502, the answer comes out differently, or cannot be cut.
        """
        self._check_prompt(event)
        owes = self.owes
        choices = event["choices"]
        if owes and not choices and event.get("usage"):
            raise self._ended()
        for choice in choices:
            self._cut(choice)
        is_news = any(map(_says_something, choices)) if choices else not self._progress.has_usage
        if not is_news:
            return None
        if owes and (strange := next(_strange(choices), None)) is not None:
            raise cannot(f"nobody knows how to cut its {strange}")
        self._progress.add(msgspec.convert(event, Chunk), whole=not owes)
        return event

    @property
    def owes(self) -> bool:
        """Whether there is something yet that the client has and that must come again."""
        return (
            self._at < len(self._tokens)
            or self._logprobs > 0
            or any(self._told[place] < len(text) for place, text in self._texts.items())
        )

    def end(self) -> None:
        """The stream is over.

        Raises:
            RequestError: 502, it ended before it had come as far as the client.
        """
        if self.owes:
            raise self._ended()

    def _check_prompt(self, event: Event) -> None:
        if self._prompt is None:
            return
        choices = event["choices"]
        told = event.get("prompt_token_ids") or next((one.get("prompt_token_ids") for one in choices), None)
        if told == self._prompt:
            self._prompt = None
        elif told or any(map(_says_something, choices)):
            raise cannot("the next one has read another prompt")

    def _cut(self, choice: Event) -> None:
        if choice.get("token_ids"):
            choice["token_ids"] = self._without_tokens(choice["token_ids"])
        delta = choice.get("delta")
        for place, holder, name in [*places(delta), *([("text", choice, "text")] if "text" in choice else [])]:
            holder[name] = self._without_text(place, holder[name])
        if delta is not None:
            delta.pop("role", None)
            self._without_calls(delta)
        self._without_logprobs(choice)
        if choice.get("finish_reason") and self.owes:
            raise self._ended()
        if self._progress.finish_reason is not None:
            choice["finish_reason"] = None

    def _without_tokens(self, tokens: list[int]) -> list[int]:
        owed = self._tokens[self._at : self._at + len(tokens)]
        for one, other in zip(tokens, owed, strict=False):
            self._at += 1
            if one != other:
                raise cannot(f"written again, token {self._at} of it comes out differently")
        return tokens[len(owed) :]

    def _without_text(self, place: str, said: str) -> str:
        told, begun = self._texts.get(place, ""), self._told.get(place, 0)
        count = min(len(said), len(told) - begun)
        if count <= 0:
            return said
        if not told.startswith(said[:count], begun):
            raise cannot(f"written again, its {place} comes out differently from character {begun + 1} on")
        self._told[place] = begun + count
        return said[count:]

    def _without_calls(self, delta: Event) -> None:
        """The head of a call that the client knows is left out; its id would be another one."""
        if "tool_calls" not in delta:
            return
        left = []
        for call in calls(delta):
            if called(call) in self._calls:
                call = {name: value for name, value in call.items() if name not in ("id", "type")}
                call["function"] = {name: value for name, value in (call.get("function") or {}).items() if value}
            if call.get("id") or call.get("function"):
                left.append(call)
        delta["tool_calls"] = left
        if not left:
            del delta["tool_calls"]

    def _without_logprobs(self, choice: Event) -> None:
        logprobs = choice.get("logprobs")
        if not logprobs or not self._logprobs:
            return
        here = entries(logprobs)
        cut = min(here, self._logprobs)
        self._logprobs -= cut
        rest = {name: value[cut:] if isinstance(value, list) else value for name, value in logprobs.items()}
        choice["logprobs"] = rest if cut < here else None

    def _ended(self) -> RequestError:
        return cannot("written again, it ends before the place where it broke off")


def _says_something(choice: Event) -> bool:
    """Whether it says more than who speaks, which the client of a chat knows from the first worker."""
    return bool(
        choice.get("finish_reason")
        or choice.get("token_ids")
        or choice.get("text")
        or choice.get("logprobs")
        or any((choice.get("delta") or {}).values())
    )


def _strange(choices: list[Event]) -> Iterator[str]:
    """Fields of a chat's delta that are neither text nor calls of tools."""
    for choice in choices:
        delta: dict[str, Any] = choice.get("delta") or {}
        yield from (name for name, value in delta.items() if value and not isinstance(value, str | list))
        yield from (name for name, value in delta.items() if isinstance(value, list) and value and name != "tool_calls")
