"""The requests an instance understands, and how it refuses the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tandem.errors import RequestError
from tandem.protocol.openai import ChatRequest, CompletionRequest, parse

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def completion(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({"prompt": "x"} | fields).encode(), CompletionRequest)


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
        ({"n": 2}, "n"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"tempreature": 1}, "tempreature"),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], param: str) -> None:
    error = refusal(json.dumps({"prompt": "x"} | fields).encode())
    assert error.param == param
    assert str(error).startswith(f"{param}: ")


def test_a_missing_field_is_named() -> None:
    assert refusal(b"{}").param == "prompt"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"3"])
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    assert refusal(raw).code == "invalid_json"


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    neutral = completion(n=1, best_of=1, logprobs=None, presence_penalty=0, user=None, logit_bias={}, max_tokens=3)
    assert neutral == completion(max_tokens=3)


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
