"""What each leg sends for a client's body."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import RequestError
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.internal import INTERNAL, XARGS, without_tickets
from tandem.gateway.request.refusals import RANGES

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


KNOWN = {*INTERNAL, XARGS, *RANGES, "cache_salt", "model"}
"""Fields that are looked at; Hypothesis draws the names that it finds in our code, too."""


def body(**fields: Any) -> ClientBody:
    return ClientBody.decode(json.dumps(fields).encode())


@given(st.dictionaries(st.text().filter(lambda name: name not in KNOWN), JSON))
def test_unknown_fields_are_forwarded_untouched(fields: dict[str, Any]) -> None:
    forbidden = {name: {"remote_host": "evil"} for name in INTERNAL}
    assert json.loads(body(**fields, **forbidden).decode_leg(None, None)) == fields


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(RequestError, match="not valid JSON: 'utf-8' codec"):
        ClientBody.decode(b'{"prompt": "\xff"}')


@pytest.mark.parametrize("model", ["tandem-seat/decode/0@h/ab", "\\u0074andem-seat/x", "tandem\\u002dseat/x"])
def test_a_seat_is_no_model_however_it_is_spelled(model: str) -> None:
    with pytest.raises(RequestError) as caught:
        ClientBody.decode(b'{"model":"%s"}' % model.encode())
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    assert ClientBody.decode(b'{"model":"org\\/m"}').value("model") == "org/m"


def test_numbers_keep_their_spelling() -> None:
    assert ClientBody.decode(b'{"temperature": 1.0e-0, "prompt": "\\u00e9"}').decode_leg(None, None) == (
        b'{"temperature":1.0e-0,"prompt":"\\u00e9"}'
    )


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b'"x"', b"{", b'{"a":}', b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"]
)
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        ClientBody.decode(raw)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_the_prefill_leg_asks_for_one_token() -> None:
    asked = body(prompt="x", stream=True, stream_options={"include_usage": True}, max_tokens=90, temperature=0.5)
    sent = json.loads(asked.prefill(early=False))
    assert sent.pop("kv_transfer_params")["do_remote_decode"] is True
    assert sent == {"prompt": "x", "stream": False, "max_tokens": 1, "temperature": 0.5}


def test_max_completion_tokens_is_set_only_where_it_was() -> None:
    assert json.loads(body(max_completion_tokens=9).prefill(early=True))["max_completion_tokens"] == 1
    assert "max_completion_tokens" not in json.loads(body(max_tokens=9).prefill(early=True))


@pytest.mark.parametrize(("asked", "sent"), [(0, 0), (1, 1), (2, 1), (90, 1), (None, None), ("x", "x"), (True, True)])
def test_min_tokens_is_lowered_for_prefill_only(asked: Any, sent: Any) -> None:
    assert json.loads(body(min_tokens=asked).prefill(early=False))["min_tokens"] == sent
    assert json.loads(body(min_tokens=asked).decode_leg(None, None))["min_tokens"] == asked


def test_min_tokens_stays_for_an_answer_that_goes_on() -> None:
    resumed = body(min_tokens=9, resume={"output_token_ids": [1, 2, 3]})
    assert json.loads(resumed.prefill(early=False))["min_tokens"] == 9


def test_the_decode_leg_carries_the_ticket_byte_for_byte() -> None:
    ticket = msgspec.Raw(b'{"b" : [[1]], "new": 1.50}')
    assert (
        body(prompt="x").decode_leg(ticket, None) == b'{"prompt":"x","kv_transfer_params":{"b" : [[1]], "new": 1.50}}'
    )


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", [None]),
        ([1, 2], [None]),
        ([], [None]),
        (["a"], [None]),
        ([[1, 2]], [None]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_several_prompts_are_told_from_one(given: Any, prompts: list[Any]) -> None:
    """One stays as it came, whatever it is."""
    found = body(prompt=given).prompts
    assert [None if one is None else json.loads(bytes(one)) for one in found] == prompts


def test_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(RequestError):
        ClientBody({"prompt": msgspec.Raw(b'["a", ]')}).prompts  # noqa: B018 - it raises


@pytest.mark.parametrize(("given", "count"), [(None, 1), (1, 1), (3, 3), (0, 0), ("2", 1), (2.0, 1), (True, 1)])
def test_how_many_answers_are_asked_for(given: Any, count: int) -> None:
    assert body(n=given).count == count


def test_fields_are_set_and_taken_out() -> None:
    asked = body(prompt="x", n=2, seed=1, odd=1.50)
    assert asked.with_fields(n=None, seed=3, new=[1]).decode_leg(None, None) == (
        b'{"prompt":"x","seed":3,"odd":1.5,"new":[1]}'
    )
    assert asked.value("n") == 2


@pytest.mark.parametrize(("given", "understood"), [(2, 2), (0.5, 0.5), (None, None), ("x", None), (True, None)])
def test_the_decode_leg_gets_the_rest_of_a_deadline(given: Any, understood: Any) -> None:
    asked = body(deadline_seconds=given)
    assert asked.deadline_s == understood
    assert json.loads(asked.decode_leg(None, 0.25)) == {"deadline_seconds": 0.25}
    assert json.loads(asked.decode_leg(None, None)) == {"deadline_seconds": given}


def test_an_answer_loses_its_ticket_and_nothing_else() -> None:
    assert without_tickets(b'{"id": "x", "kv_transfer_params": {"a": 1}, "n": 1.0}') == b'{"id":"x","n":1.0}'
    assert without_tickets(b'{"id": "x"}') == b'{"id": "x"}'
    with pytest.raises(msgspec.DecodeError):
        without_tickets(b"oops")
