"""The token counts that a client is told: what the prefill instance found is cached, and what was pulled is not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from tandem.gateway.request.tally import Tally, cached_in, with_cached
from tandem.gateway.wire.prefilled import Prefilled, PromptUsage

COUNTS = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
PULLED = COUNTS | {"prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 1}}


def prefilled(cached: int | None, *, told: bool = True) -> Prefilled:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return Prefilled(usage=msgspec.convert({"prompt_tokens": 9} | details, PromptUsage) if told else None)


@pytest.mark.parametrize("counts", [COUNTS, PULLED, COUNTS | {"prompt_tokens_details": None}])
@pytest.mark.parametrize(("tries", "found"), [([4], 4), ([0], 0), ([None, 4], None), ([4, 8], 4), ([None], None)])
def test_the_first_prefill_that_counts_is_right(counts: Any, tries: list[int | None], found: int | None) -> None:
    tally = Tally([prefilled(one) for one in tries])
    told = tally.corrected(counts, alone=False)
    assert cached_in(told) == tally.cached_tokens == found
    assert told == told | COUNTS
    others = {"audio_tokens": 1} if counts is PULLED else {}
    assert (told.get("prompt_tokens_details") or {}) == others | ({} if found is None else {"cached_tokens": found})
    assert (tally.prompt_tokens, tally.answer_tokens) == (9, 2)


def test_who_has_computed_the_prompt_itself_is_believed_unless_one_did_before() -> None:
    assert Tally([]).corrected(PULLED, alone=True) == PULLED
    assert Tally([prefilled(None, told=False)]).corrected(PULLED, alone=True) == PULLED
    assert cached_in(Tally([prefilled(3)]).corrected(PULLED, alone=True)) == 3
    assert cached_in(Tally([]).corrected(PULLED, alone=False)) is None
    assert cached_in(Tally([prefilled(None, told=False), prefilled(3)]).corrected(PULLED, alone=False)) == 3


def test_nothing_is_known_of_what_nobody_tells() -> None:
    tally = Tally([prefilled(None, told=False)])
    assert (tally.prompt_tokens, tally.cached_tokens, tally.answer_tokens) == (None, None, None)
    assert Tally([prefilled(4)]).prompt_tokens == 9


@pytest.mark.parametrize("odd", [-1, 10**400, 1.5, "9", None, True])
def test_what_can_be_no_count_is_none_and_its_client_is_told_it_as_it_came(odd: Any) -> None:
    counts = {"prompt_tokens": odd, "completion_tokens": odd, "prompt_tokens_details": {"cached_tokens": odd}}
    tally = Tally([])
    assert tally.corrected(counts, alone=True) == counts
    assert (tally.prompt_tokens, tally.cached_tokens, tally.answer_tokens) == (None, None, None)
    tally = Tally([Prefilled(usage=msgspec.convert(counts, PromptUsage))])
    tally.corrected(COUNTS, alone=False)
    assert (tally.prompt_tokens, tally.cached_tokens, tally.answer_tokens) == (9, None, 2)


def test_a_whole_answer_keeps_everything_else() -> None:
    raw = b'{"id": "x", "choices": [{"text": "\\u00e9"}], "n": 1.0e0, "usage": %s}' % json.dumps(PULLED).encode()
    told = Tally([prefilled(4)]).whole(raw, alone=False)
    assert json.loads(told) == json.loads(raw) | {"usage": with_cached(PULLED, 4)}
    assert b'"n":1.0e0' in told
    assert b"\\u00e9" in told


@pytest.mark.parametrize(
    "raw", [b'{"id": "x"}', b'{"usage": null}', b'{"usage": 3}', b'{"usage": {"prompt_tokens": 9}}']
)
def test_a_whole_answer_in_which_nothing_is_wrong_stays_as_it_is(raw: bytes) -> None:
    assert Tally([prefilled(None)]).whole(raw, alone=False) is raw


@pytest.mark.parametrize("raw", [b"oops", b"[]"])
def test_a_whole_answer_that_is_none_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        Tally([]).whole(raw, alone=False)


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"id": "x"} | fields).encode() + b"\n\n"


def test_of_a_stream_only_the_event_with_the_counts_changes() -> None:
    text = event(choices=[{"text": ' "prompt_tokens": {"cached_tokens": 8}'}])
    others = text + event(choices=[], usage=None) + b': comment with "prompt_tokens"\n\n'
    last = event(choices=[], usage=PULLED)
    told = Tally([prefilled(4)]).lines(others + last + b"data: [DONE]\n\n", alone=False)
    assert told.startswith(others)
    *_, counted, done, rest = told.split(b"\n\n")
    assert json.loads(counted.removeprefix(b"data: ")) == {"id": "x", "choices": [], "usage": with_cached(PULLED, 4)}
    assert (done, rest) == (b"data: [DONE]", b"")
    assert Tally([prefilled(4)]).lines(others, alone=False) == others


def test_counts_in_every_event_have_no_details_but_in_the_last() -> None:
    counted = event(choices=[{"text": "a"}], usage=COUNTS)
    assert Tally([prefilled(4)]).lines(counted, alone=False) == counted
    detailed = event(choices=[{"text": "a"}], usage=PULLED)
    assert b'"cached_tokens":4' in Tally([prefilled(4)]).lines(detailed, alone=False)


@pytest.mark.parametrize("line", [b'data: {"prompt_tokens"\n\n', b'data: {"usage": {"prompt_tokens"\n'])
def test_a_line_that_is_no_json_is_left_to_its_client(line: bytes) -> None:
    assert Tally([prefilled(4)]).lines(line, alone=False) == line
