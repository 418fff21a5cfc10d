"""What another worker is asked for when it has to go on, and what is refused because it could not do so exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tandem.errors import RequestError
from tandem.gateway.body import ClientBody
from tandem.gateway.continuation import continued, resumed
from tandem.gateway.journal import Progress

CHAT = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> ClientBody:
    return ClientBody.decode(json.dumps(fields).encode())


def progress(**fields: Any) -> Progress:
    return Progress(**{"prompt": [1, 2], "tokens": [10, 11, 12], "characters": 9} | fields)


def sent(asked: ClientBody) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(asked.decode_leg(None, None))
    return read


def test_ours_is_told_what_there_is_and_everything_else_stays() -> None:
    asked = {"prompt": "x", "max_tokens": 20, "seed": 3, "stop": ["y"], "presence_penalty": 1}
    resume = {"output_token_ids": [10, 11, 12], "sent": 9, "choice": 2}
    assert sent(resumed(body(**asked), progress(silent_tokens=1), 2)) == asked | {"resume": resume}


def test_what_the_client_itself_had_before_comes_first() -> None:
    begun = {"output_token_ids": [8, 9], "sent": 4, "choice": 1}
    asked = sent(resumed(body(prompt="x", resume=begun), progress(), 0))
    assert asked["resume"] == {"output_token_ids": [8, 9, 10, 11, 12], "sent": 13, "choice": 1}


def test_another_engine_gets_it_as_a_prompt() -> None:
    asked = body(prompt="x", max_tokens=20, min_tokens=5, temperature=0, seed=3, repetition_penalty=1.1)
    assert sent(continued(asked, progress())) == {
        "prompt": [1, 2, 10, 11, 12],
        "max_tokens": 17,
        "min_tokens": 2,
        "temperature": 0,
        "seed": 3,
        "repetition_penalty": 1.1,
    }


def test_the_prompt_of_a_chat_stands_beside_it() -> None:
    asked = sent(continued(body(messages=CHAT, max_tokens=4, max_completion_tokens=6, min_tokens=1), progress()))
    assert asked == {
        "messages": CHAT,
        "max_tokens": 1,
        "max_completion_tokens": 3,
        "min_tokens": 0,
        "kv_transfer_params": {"prompt_token_ids": [1, 2, 10, 11, 12]},
    }


def test_tokens_whose_text_is_still_to_come_are_written_again() -> None:
    asked = sent(continued(body(prompt="x", max_tokens=20), progress(silent_tokens=2)))
    assert (asked["prompt"], asked["max_tokens"]) == ([1, 2, 10], 19)


def test_without_a_limit_a_completion_has_openais_and_a_chat_none() -> None:
    assert sent(continued(body(prompt="x"), progress()))["max_tokens"] == 13
    assert "max_tokens" not in sent(continued(body(messages=CHAT), progress()))


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
        {"stop": ["x"]},
        {"stop": "x"},
        {"echo": True},
        {"prompt_logprobs": 0},
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a"}},
        {"guided_json": {}},
        {"seed": 3},
        {"seed": 3, "temperature": 0.5},
        {"logprobs": 2},
        {"logprobs": 0},
        {"bad_words": ["x"]},
        {"truncate_prompt_tokens": 5},
    ],
)
def test_what_would_not_go_on_exactly_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(fields))) as caught:
        continued(body(prompt="x", **fields), progress())
    assert (caught.value.status, caught.value.code) == (502, "cannot_continue")


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0, "frequency_penalty": 0.0, "stop": [], "echo": False, "tools": []},
        {"stop": None, "response_format": {"type": "text"}, "seed": None, "logprobs": None},
        {"seed": 3, "temperature": 0.0},
        {"temperature": 0.7},
    ],
)
def test_what_asks_for_nothing_is_no_reason(fields: dict[str, Any]) -> None:
    continued(body(prompt="x", **fields), progress())


def test_log_probabilities_of_a_chat_have_no_places() -> None:
    continued(body(messages=CHAT, logprobs=True, top_logprobs=3), progress())


def test_what_a_parser_has_made_of_the_text_does_not_go_on() -> None:
    with pytest.raises(RequestError, match="parser"):
        continued(body(messages=CHAT), progress(is_parsed=True))


def test_ids_that_the_client_has_already_are_not_written_again() -> None:
    with pytest.raises(RequestError, match="return_token_ids"):
        continued(body(prompt="x", return_token_ids=True), progress(silent_tokens=1))
    continued(body(prompt="x", return_token_ids=True), progress())


def test_a_worker_that_tells_no_ids_is_the_reason() -> None:
    with pytest.raises(RequestError, match="told no token ids"):
        continued(body(prompt="x"), progress(prompt=None))
