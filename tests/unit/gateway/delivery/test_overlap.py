"""What a client has already is left out of an answer that is written again, however each of them was cut."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import RequestError
from tandem.gateway.delivery.overlap import Overlap
from tandem.gateway.request.progress import Chunk, Event, Progress

PROMPT = [5, 6]
PLACES = ("plain", "reasoning", "call 0", "call 1")


@dataclass(frozen=True)
class Unit:
    """A token, and what it adds to which text."""

    token: int
    place: str
    text: str


@dataclass
class Said:
    """Events, put together."""

    tokens: list[int] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    heads: list[Any] = field(default_factory=list)
    """Of calls: index and name."""
    reasons: list[str] = field(default_factory=list)
    usages: int = 0

    def add(self, event: Event) -> None:
        self.usages += not event["choices"]
        for choice in event["choices"]:
            delta = choice.get("delta") or {}
            self.tokens += choice.get("token_ids") or []
            said = {"text": choice.get("text"), "content": delta.get("content"), "reasoning": delta.get("reasoning")}
            for call in delta.get("tool_calls", ()):
                function = call.get("function", {})
                said[f"call {call['index']}"] = function.get("arguments")
                assert bool(call.get("id")) == bool(function.get("name"))
                self.heads += [(call["index"], function["name"])] if "id" in call else []
            for name, text in said.items():
                self.texts[name] = self.texts.get(name, "") + (text or "")
            logprobs = choice.get("logprobs") or {}
            self.logprobs += zip(*logprobs.values(), strict=True)
            self.reasons += [choice["finish_reason"]] if choice.get("finish_reason") else []


@st.composite
def answers(draw: st.DrawFn, *, chat: bool) -> list[Unit]:
    places = draw(st.lists(st.sampled_from(PLACES if chat else PLACES[:1]), min_size=1, max_size=8))
    return [
        Unit(draw(st.integers(0, 3)), place, draw(st.sampled_from(["", "a", "ab", "\u00f6", "aab"])))
        for place in places
    ]


def spoken(units: Sequence[Unit], cuts: Sequence[int], lags: Sequence[bool], *, chat: bool, author: str) -> list[Event]:
    """An answer as the events of one worker: it cuts where it likes, and its text comes when it likes."""
    ends = sorted({cut % (len(units) + 1) for cut in cuts} - {0} | {len(units)})
    events: list[Event] = []
    if chat:
        events.append({"choices": [{"delta": {"role": "assistant", "content": ""}}], "prompt_token_ids": PROMPT})
    late: dict[str, str] = {}
    known: set[str] = set()
    begin = 0
    for end in ends:
        for number in range(begin, end):
            unit = units[number]
            late[unit.place] = late.get(unit.place, "") + unit.text
        group = units[begin:end]
        lag = lags[end % len(lags)] and end < len(units)
        choice: Event = {"token_ids": [unit.token for unit in group]}
        choice["logprobs"] = {"content" if chat else "tokens": [f"t{unit.token}" for unit in group]}
        told = {} if lag else {place: late.pop(place) for place in list(late)}
        if chat:
            choice["delta"] = delta_of(told, known, author)
        else:
            choice["text"] = told.get("plain", "")
            choice["prompt_token_ids"] = None if begin else PROMPT
        choice["finish_reason"] = "stop" if end == len(units) else None
        events.append({"choices": [choice]})
        begin = end
    return [*events, {"choices": [], "usage": {"total_tokens": 3}}]


def delta_of(told: dict[str, str], known: set[str], author: str) -> Event:
    delta: Event = {}
    for place, text in told.items():
        if not place.startswith("call"):
            delta["content" if place == "plain" else place] = text
            continue
        call: Event = {"index": int(place[-1]), "function": {"arguments": text}}
        if place not in known:
            known.add(place)
            call |= {"id": f"{place} of {author}", "type": "function"}
            call["function"]["name"] = f"name of {place}"
        delta.setdefault("tool_calls", []).append(call)
    return delta


def together(events: Sequence[Event]) -> Said:
    said = Said()
    for event in events:
        said.add(event)
    return said


@given(st.data(), st.booleans())
def test_both_parts_are_the_undisturbed_answer(data: st.DataObject, chat: bool) -> None:
    units = data.draw(answers(chat=chat))
    cuts, lags = st.lists(st.integers(0, 20), max_size=8), st.lists(st.booleans(), min_size=1, max_size=8)
    first, second, third = (
        spoken(units, data.draw(cuts), data.draw(lags), chat=chat, author=author) for author in ("one", "two", "three")
    )
    expected, told, progress = together(first), Said(), Progress()
    for event in first[: data.draw(st.integers(1, len(first)))]:
        told.add(event)
        progress.add(msgspec.convert(event, Chunk))
    for events in (second[: data.draw(st.integers(0, len(second)))], third):
        overlap = Overlap(progress, prompt=PROMPT)
        for event in copy.deepcopy(events):
            if (news := overlap.news(event)) is not None:
                told.add(news)
    overlap.end()
    assert (told.tokens, told.logprobs, told.reasons, told.usages) == (
        expected.tokens,
        expected.logprobs,
        ["stop"],
        1,
    )
    assert {place: text for place, text in told.texts.items() if text} == {
        place: text for place, text in expected.texts.items() if text
    }
    assert sorted(told.heads) == sorted(expected.heads)
    assert progress.tokens == told.tokens


def plain(*pieces: tuple[list[int], str], reason: str | None = None) -> list[Event]:
    events = [{"choices": [{"token_ids": list(ids), "text": text}]} for ids, text in pieces]
    if reason:
        events[-1]["choices"][0]["finish_reason"] = reason
    return events


def having(events: list[Event]) -> Progress:
    progress = Progress(prompt=PROMPT)
    for event in events:
        progress.add(msgspec.convert(event, Chunk))
    return progress


TOLD = plain(([1], "ab"), ([2], "cd"), ([3], "ef"))


@pytest.mark.parametrize(
    ("again", "why"),
    [
        (plain(([1], "ab"), ([4, 3], "cdef")), "token 2 of it"),
        (plain(([1, 2, 9], "abcdef")), "token 3 of it"),
        (plain(([1, 2, 3], "abcXef")), "text comes out differently from character 1"),
        (plain(([1], "ab"), ([2], "cd"), reason="stop"), "ends before"),
        ([*plain(([1], "ab")), {"choices": [], "usage": {"total_tokens": 1}}], "ends before"),
    ],
)
def test_another_answer_is_found_out(again: list[Event], why: str) -> None:
    overlap = Overlap(having(TOLD))
    with pytest.raises(RequestError, match=why) as caught:
        assert not any(overlap.news(event) for event in again)
    assert (caught.value.status, caught.value.code) == (502, "cannot_continue")


def test_what_ends_without_a_word_is_found_out() -> None:
    overlap = Overlap(having(TOLD))
    for event in plain(([1, 2], "abcd")):
        assert overlap.news(event) is None
    with pytest.raises(RequestError, match="ends before"):
        overlap.end()


def test_another_prompt_is_found_out() -> None:
    for told in ({"prompt_token_ids": [5, 7]}, {}):
        overlap = Overlap(having(TOLD), prompt=PROMPT)
        event = plain(([1], "ab"))[0] | told
        with pytest.raises(RequestError, match="another prompt"):
            overlap.news(event)


def test_it_may_begin_later() -> None:
    progress = having(TOLD)
    overlap = Overlap(progress, tokens=2, characters=4)
    assert overlap.owes
    [news] = [overlap.news(event) for event in plain(([3, 4], "efgh"))]
    assert news == plain(([4], "gh"))[0]
    assert progress.tokens == [1, 2, 3, 4]
    assert "".join(progress.texts["text"]) == "abcdefgh"


def test_an_event_that_was_cut_settles_nothing() -> None:
    """Its last token may have brought no text of its own."""
    progress = having([*plain(([1], "ab")), *plain(([2], ""))])
    overlap = Overlap(progress)
    for event in plain(([1], "ab"), ([2, 3], "cd")):
        overlap.news(event)
    assert (progress.tokens, progress.settled) == ([1, 2, 3], (1, 2))
    overlap.news(plain(([4], "e"))[0])
    assert progress.settled == (4, 5)


def test_what_nobody_knows_how_to_cut_is_named() -> None:
    overlap = Overlap(having(TOLD))
    with pytest.raises(RequestError, match="citations"):
        overlap.news({"choices": [{"token_ids": [1, 2, 3, 4], "text": "abcdefgh", "delta": {"citations": [1]}}]})


def test_a_completions_log_probabilities_are_cut_in_all_lists() -> None:
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1, -2], "top_logprobs": None, "text_offset": [0, 1]}
    event = {"choices": [{"token_ids": [1, 2], "text": "ab", "logprobs": logprobs}]}
    one = {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": None, "text_offset": [0]}
    overlap = Overlap(having([{"choices": [{"token_ids": [1], "text": "a", "logprobs": one}]}]))
    news = overlap.news(event)
    assert news is not None
    assert news["choices"][0]["logprobs"] == {
        "tokens": ["b"],
        "token_logprobs": [-2],
        "top_logprobs": None,
        "text_offset": [1],
    }
