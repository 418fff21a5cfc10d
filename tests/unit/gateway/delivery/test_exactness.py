"""With which fields a vLLM goes on exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tandem.gateway.delivery.exactness import Exactness
from tandem.gateway.request.body import ClientBody

TEXT = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "user", "content": "hi"}]
PICTURE = [
    {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "u"}}]}
]


def exactness(**fields: Any) -> Exactness:
    return Exactness(ClientBody.decode(json.dumps({"prompt": "x"} | fields).encode()))


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
        {"logprobs": 2},
        {"logprobs": 0},
        {"bad_words": ["x"]},
        {"truncate_prompt_tokens": 5},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"a_field_of_tomorrow": True},
    ],
)
def test_what_would_begin_anew(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    for how in ({}, {"temperature": 0}, {"temperature": 0, "seed": 3}):
        assert exactness(**fields, **how).obstacle == name
    assert exactness(**fields).needs_seed
    assert not exactness(**fields, seed=3).needs_seed
    assert not exactness(**fields, temperature=0.0).needs_seed


@pytest.mark.parametrize(
    "fields",
    [
        {
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "stop": [],
            "echo": False,
            "tools": [],
            "tool_choice": "auto",
        },
        {"stop": None, "response_format": {"type": "text"}, "seed": None, "logprobs": None, "of_tomorrow": None},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
        {"max_tokens": 5, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [3], "logprobs": False},
        {"user": "me", "logit_bias": {"5": 1}},
        {"messages": TEXT},
    ],
)
def test_what_goes_on(fields: dict[str, Any]) -> None:
    assert exactness(**fields).obstacle is None
    assert not exactness(**fields).needs_seed


def test_what_is_told_of_tokens_before_their_text_must_come_again_the_same() -> None:
    for fields in ({"return_token_ids": True}, {"seed": 3}, {"messages": TEXT, "logprobs": True, "top_logprobs": 2}):
        assert exactness(**fields).obstacle in fields
        assert exactness(**fields, temperature=0).obstacle is None


def test_of_a_picture_nobody_reads_ready_tokens() -> None:
    assert exactness(messages=PICTURE, temperature=0).obstacle == "messages"
    assert exactness(messages=PICTURE).needs_seed


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (0.0, True), (1, False), (None, False), ("0", False)])
def test_without_a_temperature_it_is_drawn(temperature: Any, greedy: bool) -> None:
    assert exactness(temperature=temperature).is_greedy == greedy
