"""The requests an instance understands, and how it refuses the rest."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields

from tandem.errors import RequestError
from tandem.protocol.openai import NEUTRAL, ChatRequest, CompletionRequest, parse

R = TypeVar("R", CompletionRequest, ChatRequest)
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def completion(**asked: Any) -> CompletionRequest:
    return parse(json.dumps({"prompt": "x"} | asked).encode(), CompletionRequest)


def refusal(raw: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(raw, CompletionRequest)
    assert caught.value.status == 400
    return caught.value


def test_defaults() -> None:
    request = completion()
    assert (request.stream, request.min_tokens, request.stops, request.include_usage) == (False, 0, (), False)


@pytest.mark.parametrize(("stop", "stops"), [("a", ("a",)), ("", ()), (["a", "b"], ("a", "b")), (None, ())])
def test_stop_strings_however_spelled(stop: Any, stops: tuple[str, ...]) -> None:
    assert completion(stop=stop).stops == stops


@pytest.mark.parametrize(("prompt", "single"), [("x", "x"), ([1, 2], [1, 2]), (["x"], "x"), ([[1, 2]], [1, 2])])
def test_one_prompt_however_spelled(prompt: Any, single: Any) -> None:
    assert completion(prompt=prompt).single_prompt() == single


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "is empty"),
        ([], "is empty"),
        (["a", "b"], "2 prompts"),
        ([1, "a"], "expected text"),
        ([True], "expected text"),
    ],
)
def test_other_prompts_are_refused(prompt: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        completion(prompt=prompt).single_prompt()
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "stop[0]"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 10001}, "repetition_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"priority": 2**31}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "a b"}, "cache_salt"),
        ({"cache_salt": "a\n"}, "cache_salt"),
        ({"cache_salt": "a@b"}, "cache_salt"),
        ({"cache_salt": "é"}, "cache_salt"),
        ({"cache_salt": "a" * 257}, "cache_salt"),
        ({"cache_salt": 3}, "cache_salt"),
        ({"user": 3}, "user"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"store": True}, "store"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reservation": ""}, "reservation"),
        ({"return_token_ids": 1}, "return_token_ids"),
        ({"resume": {}}, "resume.output_token_ids"),
        ({"resume": {"output_token_ids": [], "x": 1}}, "resume.x"),
        ({"resume": {"output_token_ids": [1], "sent": -1}}, "resume.sent"),
        ({"resume": {"output_token_ids": ["x"]}}, "resume.output_token_ids[0]"),
        ({"kv_transfer_params": {"remote_port": "80"}}, "kv_transfer_params.remote_port"),
        ({"kv_transfer_params": 3}, "kv_transfer_params"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"tempreature": 1}, "tempreature"),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], param: str) -> None:
    error = refusal(json.dumps({"prompt": "x"} | fields).encode())
    assert error.param == param
    assert str(error).startswith(f"{param}: ")


def test_a_salt_is_explained_in_words() -> None:
    assert str(refusal(b'{"prompt": "x", "cache_salt": "a b"}')) == (
        "cache_salt: expected `str` of 1 to 256 letters, digits and _-+/=."
    )


def test_a_missing_field_is_named() -> None:
    assert refusal(b"{}").param == "prompt"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3"])
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    assert refusal(raw).code == "invalid_json"


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    neutral = completion(best_of=1, echo=False, suffix=None, store=False, service_tier="auto", logit_bias={}, n=1)
    assert neutral == completion(n=1)
    assert completion(user="me", metadata={"team": "red"}).max_tokens is None
    assert completion(n=2, best_of=2) == completion(n=2, best_of=1) == completion(n=2)


def test_what_is_there_is_taken() -> None:
    asked = completion(
        n=2, presence_penalty=1, frequency_penalty=-2, repetition_penalty=1.05, logprobs=3, priority=-1,
        deadline_seconds=0.5, cache_salt="Zm9v+/=._-", return_token_ids=True, reservation="r",
        resume={"output_token_ids": [1]},
    )  # fmt: skip
    assert (asked.n, asked.logprob_count, asked.priority, asked.deadline_seconds) == (2, 3, -1, 0.5)
    assert asked.resume is not None
    assert (asked.resume.sent, asked.resume.choice) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "count"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 4}, 4)],
)
def test_logprobs_of_a_chat(fields: dict[str, Any], count: int | None) -> None:
    assert parse(json.dumps(CHAT | fields).encode(), ChatRequest).logprob_count == count


def test_top_logprobs_need_logprobs() -> None:
    with pytest.raises(RequestError, match=r"^top_logprobs: needs logprobs") as caught:
        _ = parse(json.dumps(CHAT | {"top_logprobs": 2}).encode(), ChatRequest).logprob_count
    assert caught.value.param == "top_logprobs"


NAMES = sorted({*NEUTRAL, *(field.name for kind in (CompletionRequest, ChatRequest) for field in fields(kind)), "zzz"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner),
    max_leaves=6,
)


def outcome(raw: bytes, kind: type[R]) -> R | RequestError:
    try:
        return parse(raw, kind)
    except RequestError as error:
        return error


@given(body=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5), prompt=st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_object_is_taken_or_refused_by_name(body: dict[str, Any], prompt: bool) -> None:
    for kind, least in ((CompletionRequest, {"prompt": "x"}), (ChatRequest, CHAT)):
        taken = outcome(json.dumps((least if prompt else {}) | body).encode(), kind)
        assert isinstance(taken, kind) or (taken.status == 400 and (taken.param or taken.code))


@given(raw=st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_taken_or_refused(raw: bytes) -> None:
    assert isinstance(outcome(raw, CompletionRequest), CompletionRequest | RequestError)


def test_chat() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 5, "max_completion_tokens": 3}
    request = parse(json.dumps(body).encode(), ChatRequest)
    assert request.messages[0].text == "ab"
    assert request.token_limit == 3
    assert parse(json.dumps(CHAT | {"max_tokens": 5}).encode(), ChatRequest).token_limit == 5
    with pytest.raises(RequestError, match=r"^messages"):
        parse(b'{"messages": []}', ChatRequest)


def test_a_ticket_of_another_engine_may_carry_more() -> None:
    request = completion(kv_transfer_params={"do_remote_prefill": True, "remote_block_ids": [[1]], "dcp_size": 1})
    assert request.kv_transfer_params is not None
    assert request.kv_transfer_params.remote_block_ids == [[1]]
