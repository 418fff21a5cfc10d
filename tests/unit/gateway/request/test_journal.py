"""What a client has of an answer, however the network cuts the bytes."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.gateway.request import journal
from tandem.gateway.request.journal import Journal
from tandem.gateway.request.progress import Chunk
from tandem.protocol import sse

IDS = ("token_ids", "prompt_token_ids")

TEXTS = st.text(max_size=6) | st.sampled_from(
    [
        '"token_ids":[1,2]',
        ',"token_ids":null',
        '\\","token_ids":[3]',
        "data: [DONE]\n\n",
        '{"kv_transfer_params":{}}',
        ",",
    ]
)


@st.composite
def choices(draw: st.DrawFn, *, chat: bool) -> dict[str, Any]:
    text = draw(TEXTS)
    choice: dict[str, Any] = {"index": 0} | ({"delta": {"content": text}} if chat else {"text": text})
    choice["logprobs"] = draw(st.none() | st.just({"tokens": [text], "top_logprobs": [{"a": -1.0, "token_ids": -2.5}]}))
    choice["finish_reason"] = draw(st.none() | st.sampled_from(["stop", "length"]))
    choice["token_ids"] = draw(st.none() | st.lists(st.integers(0, 10**6), max_size=3))
    if draw(st.booleans()):
        choice["prompt_token_ids"] = draw(st.none() | st.just([5, 6]))
    return choice


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    chat = draw(st.booleans())
    events = draw(st.lists(choices(chat=chat), max_size=5))
    head = {"id": "a", "object": "o", "created": 1, "model": draw(TEXTS)}
    told = [head | {"choices": [choice]} for choice in events]
    if told and chat:
        told[0] |= {"prompt_token_ids": [5, 6]}
    if draw(st.booleans()):
        told.append(head | {"choices": [], "usage": {"total_tokens": 3}})
    return told


def raw(events: list[dict[str, Any]]) -> bytes:
    return b"".join(map(sse.event, events)) + sse.DONE


def without_ids(event: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in event.items() if name not in IDS}
    return kept | {"choices": [{k: v for k, v in choice.items() if k not in IDS} for choice in event["choices"]]}


def by_lines(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The stream in pieces of whole lines."""
    ends = [0, *(place + 1 for place, byte in enumerate(stream) if byte == ord("\n"))]
    kept = sorted({0, ends[-1], *(ends[cut % len(ends)] for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(kept)]


@given(
    events=streams(), cuts=st.lists(st.integers(0, 10**6)), kept=st.sampled_from([1, 100, 2**16]), wants=st.booleans()
)
def test_the_client_gets_what_it_would_have_had_without_us(
    events: list[dict[str, Any]], cuts: list[int], kept: int, wants: bool
) -> None:
    one, limit = Journal(wants_ids=wants), journal.KEPT_BYTES
    try:
        journal.KEPT_BYTES = kept  # type: ignore[misc]
        seen = b"".join(one.pass_on(lines) for lines in by_lines(raw(events), cuts))
    finally:
        journal.KEPT_BYTES = limit  # type: ignore[misc]
    assert seen == raw(events if wants else [without_ids(event) for event in events])
    told = [choice for event in events for choice in event["choices"]]
    progress = one.progress
    assert progress.tokens == [token for choice in told for token in choice["token_ids"] or ()]
    assert progress.characters == sum(
        len(choice.get("text", "") or choice.get("delta", {}).get("content", "")) for choice in told
    )
    assert progress.has_usage == any("usage" in event for event in events)
    assert progress.head.id == ("a" if events else "")


@given(events=streams(), cut=st.integers(0, 10**6))
def test_what_is_passed_on_counts_as_what_is_given_by_itself(events: list[dict[str, Any]], cut: int) -> None:
    """An answer is read in one way by its first worker, in the other by the next."""
    at = cut % (len(events) + 1)
    whole, both = Journal(wants_ids=False), Journal(wants_ids=False)
    whole.pass_on(raw(events))
    if at:
        both.pass_on(b"".join(map(sse.event, events[:at])))
    for event in events[at:]:
        both.progress.add(msgspec.convert(event, Chunk))
        assert both.seen(event) == without_ids(event)
    assert whole.progress == both.progress


def test_blanks_between_fields_make_no_difference() -> None:
    line = b"data: " + json.dumps({"choices": [{"text": "x", "token_ids": [1, 2], "prompt_token_ids": None}]}).encode()
    assert Journal(wants_ids=False).pass_on(line + b"\n") == b'data: {"choices": [{"text": "x"}]}\n'


def test_tokens_without_text_can_be_forgotten() -> None:
    one = Journal(wants_ids=False)
    for text, ids in (("a", [1]), ("", [2]), ("b", [3]), ("", [4]), ("", [5, 6])):
        one.pass_on(sse.event({"id": "i", "choices": [{"text": text, "token_ids": ids}]}))
    assert (one.progress.tokens, one.progress.silent_tokens) == ([1, 2, 3, 4, 5, 6], 3)
    for _ in range(2):
        one.progress.forget_silent_tokens()
        assert (one.progress.tokens, one.progress.silent_tokens) == ([1, 2, 3], 0)


def test_a_stream_of_something_else_is_told_when_it_is_looked_at() -> None:
    one = Journal(wants_ids=False)
    assert one.pass_on(b"data: oops\n\n") == b"data: oops\n\n"
    with pytest.raises(msgspec.DecodeError):
        one.progress  # noqa: B018 - it raises


def test_the_time_it_takes_is_linear() -> None:
    """One long line of ids is cut in one pass."""
    line = b'data: {"choices":[{"text":"x","token_ids":[' + b"1," * 10**5 + b"1" + b"]}]}\n\n"
    assert Journal(wants_ids=False).pass_on(line) == b'data: {"choices":[{"text":"x"}]}\n\n'
    endless = b',"token_ids":[' * 10**4 + b"\n"
    assert Journal(wants_ids=False).pass_on(endless) == endless
