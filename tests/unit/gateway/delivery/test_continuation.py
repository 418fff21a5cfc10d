"""What another worker is asked for when it has to go on, and what is refused because it could not do so exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tandem.errors import RequestError
from tandem.gateway.delivery.continuation import Continuation, go_on, resume
from tandem.gateway.delivery.exactness import Exactness
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.progress import Choice, Chunk, Progress

CHAT = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> ClientBody:
    return ClientBody.decode(json.dumps(fields).encode())


def progress(*told: Choice, prompt: list[int] | None = [1, 2]) -> Progress:  # noqa: B006 - it is not changed
    """Three tokens of three characters, or what was told instead."""
    one = Progress(prompt=prompt)
    for choice in told or [Choice(text="abc", token_ids=[token]) for token in (10, 11, 12)]:
        one.add(Chunk(choices=(choice,)))
    return one


def sent(way: Continuation) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(way.body.decode_leg(None, None))
    return read


def asked_next(asked: ClientBody, one: Progress) -> dict[str, Any]:
    return sent(go_on(asked, one, Exactness(asked)))


def test_ours_is_told_what_there_is_and_everything_else_stays() -> None:
    asked = {"prompt": "x", "max_tokens": 20, "seed": 3, "stop": ["y"], "presence_penalty": 1}
    expected = asked | {"resume": {"output_token_ids": [10, 11, 12], "sent": 9, "choice": 2}}
    assert sent(resume(body(**asked), progress(), 2)) == expected


def test_what_the_client_itself_had_before_comes_first() -> None:
    begun = {"output_token_ids": [8, 9], "sent": 4, "choice": 1}
    asked = sent(resume(body(prompt="x", resume=begun), progress(), 0))
    assert asked["resume"] == {"output_token_ids": [8, 9, 10, 11, 12], "sent": 13, "choice": 1}


def test_a_vllm_gets_it_as_a_prompt() -> None:
    asked = body(prompt="x", max_tokens=20, min_tokens=5, temperature=0, seed=3, repetition_penalty=1.1)
    assert asked_next(asked, progress()) == {
        "prompt": [1, 2, 10, 11, 12],
        "max_tokens": 17,
        "min_tokens": 2,
        "temperature": 0,
        "seed": 3,
        "repetition_penalty": 1.1,
    }


def test_the_prompt_of_a_chat_stands_beside_it() -> None:
    asked = body(messages=CHAT, max_tokens=4, max_completion_tokens=6, min_tokens=1)
    assert asked_next(asked, progress()) == {
        "messages": CHAT,
        "max_tokens": 1,
        "max_completion_tokens": 3,
        "min_tokens": 0,
        "kv_transfer_params": {"prompt_token_ids": [1, 2, 10, 11, 12]},
    }


@pytest.mark.parametrize("temperature", [0, 1])
def test_tokens_whose_text_is_still_to_come_are_written_again(temperature: int) -> None:
    one = progress(Choice(text="a", token_ids=[10]), Choice(token_ids=[11]), Choice(token_ids=[12]))
    asked = asked_next(body(prompt="x", max_tokens=20, temperature=temperature), one)
    assert (asked["prompt"], asked["max_tokens"]) == ([1, 2, 10], 19)
    assert one.tokens == ([10] if temperature else [10, 11, 12])


def test_of_an_event_with_several_tokens_nobody_knows_whether_all_have_brought_text() -> None:
    one = progress(Choice(text="a", token_ids=[10]), Choice(text="b", token_ids=[11, 12]))
    assert asked_next(body(prompt="x", max_tokens=20, temperature=0), one)["prompt"] == [1, 2, 10]


def test_without_a_limit_a_completion_has_openais_and_a_chat_none() -> None:
    assert asked_next(body(prompt="x"), progress())["max_tokens"] == 13
    assert "max_tokens" not in asked_next(body(messages=CHAT), progress())


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0.5},
        {"stop": "x"},
        {"seed": 3},
        {"logprobs": 0},
        {"echo": True},
        {"a_field_of_tomorrow": 1},
    ],
)
def test_what_a_vllm_would_not_keep_is_asked_for_once_more(fields: dict[str, Any]) -> None:
    for how in ({"temperature": 0}, {"seed": 3}):
        asked = {"prompt": "x", "max_tokens": 20} | fields | how
        if asked.get("seed") == 3 and asked.get("temperature") == 0 and len(asked) == 4:
            continue  # a seed says nothing where nothing is drawn
        assert asked_next(body(**asked), progress()) == asked


def test_what_is_drawn_without_a_seed_is_asked_for_once_more_with_ours() -> None:
    asked = body(prompt="x", stop="y")
    assert sent(go_on(asked.with_fields(seed=7), progress(), Exactness(asked))) == {
        "prompt": "x",
        "stop": "y",
        "seed": 7,
    }


def test_what_can_neither_go_on_nor_come_again_is_refused_by_name() -> None:
    asked = body(prompt="x", stop="y")
    with pytest.raises(RequestError, match="stop would not go on") as caught:
        go_on(asked, progress(), Exactness(asked))
    assert (caught.value.status, caught.value.code) == (502, "cannot_continue")


PARSED = Choice(delta={"reasoning": "hm"}, token_ids=[10])


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (progress(prompt=None), "told no token ids"),
        (progress(Choice(text="x")), "told no token ids"),
        (progress(PARSED), "parser has put into reasoning"),
    ],
)
def test_what_it_looks_like_decides_too(one: Progress, reason: str) -> None:
    asked = body(messages=CHAT, max_tokens=3)
    with pytest.raises(RequestError, match=reason):
        go_on(asked, one, Exactness(asked))
    seeded = body(messages=CHAT, max_tokens=3, temperature=0)
    assert asked_next(seeded, one)["max_tokens"] == 3


def test_counts_are_those_of_the_whole() -> None:
    asked, one = body(prompt="x", max_tokens=20, temperature=0), progress()
    way = go_on(asked, one, Exactness(asked))
    said = {"choices": [{"text": "d", "token_ids": [13], "prompt_token_ids": [1, 2, 10, 11, 12]}]}
    told = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "more": 1}
    assert way.news(said | {"usage": told}) == said | {
        "usage": {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6, "more": 1}
    }
    assert one.tokens == [10, 11, 12, 13]


def test_a_worker_that_does_not_take_the_tokens_is_found_out() -> None:
    asked = body(messages=CHAT, max_tokens=20, temperature=0)
    for told in ({"prompt_token_ids": [1, 2]}, {}):
        way = go_on(asked, progress(), Exactness(asked))
        with pytest.raises(RequestError, match="another prompt"):
            way.news({"choices": [{"delta": {"content": "d"}, "token_ids": [13]}]} | told)
