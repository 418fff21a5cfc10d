"""The judge of the router's chaos kit: an undisturbed answer passes, and every way to spoil one is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from chaos.router.client import Exchange
from chaos.router.judge import Verdict, judge
from chaos.router.load import KINDS, Ask, ask
from chaos.router.mock.generation import Generation
from chaos.router.mock.wire import Wire, joined

Part = dict[str, Any]

COMPLETION = next(kind for kind in KINDS if kind.name == "completion, usage")
CHAT = next(kind for kind in KINDS if kind.name == "chat")
WHOLE = next(kind for kind in KINDS if kind.name == "completion, whole")
TOLD_IDS = next(kind for kind in KINDS if kind.name == "chat, token ids, usage")
LOGPROBS = next(kind for kind in KINDS if kind.name == "completion, logprobs")
SEVERAL = next(kind for kind in KINDS if kind.name == "completion, n=2, seed, usage")


def parts(one: Ask) -> list[Part]:
    """What an instance tells, streamed or not."""
    wire = Wire(wish=one.wish, request_id="a", dialect="native")
    steps = {choice: list(Generation(one.wish, choice).all()) for choice in one.wish.choices}
    count = sum(len(step.tokens) for told in steps.values() for step in told)
    if not one.wish.stream:
        return [wire.whole({choice: joined(told) for choice, told in steps.items()}, count, None)]
    chunks = [wire.chunk(choice, step) for choice, told in steps.items() for step in told]
    return [*wire.roles(), *chunks, *([wire.usage(count)] if one.wish.usage else [])]


def sent(one: Ask, told: list[Part], *, done: bool = True) -> Exchange:
    if not one.wish.stream:
        return Exchange(status=200, body=json.dumps(told[0]).encode(), end="whole")
    body = b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in told)
    return Exchange(status=200, body=body + (b"data: [DONE]\n\n" if done else b""), end="whole")


def verdict(one: Ask, told: list[Part], **options: Any) -> Verdict:
    return judge(one, sent(one, told, **options))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_undisturbed_answer_passes(kind: Any) -> None:
    one = ask(3, 7, kind)
    assert verdict(one, parts(one)) == Verdict("ok")


def test_comments_between_events_are_no_harm() -> None:
    one = ask(3, 7, CHAT)
    got = sent(one, parts(one))
    got.body = b": still here\n\n" + got.body.replace(b"\n\n", b"\n\n: and here\n\n", 3)
    assert judge(one, got) == Verdict("ok")


def double_a_token(told: list[Part]) -> None:
    told.insert(5, told[5])


def lose_a_token(told: list[Part]) -> None:
    del told[5]


def lose_the_last_token(told: list[Part]) -> None:
    told[-2]["choices"][0]["text"] = ""


def leak_the_ticket(told: list[Part]) -> None:
    told[-2]["kv_transfer_params"] = {"remote_port": 1}


def leak_a_null_ticket(told: list[Part]) -> None:
    told[-2]["kv_transfer_params"] = None


def leak_ids(told: list[Part]) -> None:
    told[5]["choices"][0]["token_ids"] = [17]


def leak_the_prompts_ids(told: list[Part]) -> None:
    told[0]["prompt_token_ids"] = [17]


def tell_usage_twice(told: list[Part]) -> None:
    told.append(told[-1])


def tell_another_usage(told: list[Part]) -> None:
    told[-1]["usage"]["prompt_tokens"] += 1


def tell_what_was_pulled_as_cached(told: list[Part]) -> None:
    told[-1]["usage"]["prompt_tokens_details"] = {"cached_tokens": told[-1]["usage"]["prompt_tokens"] - 1}


def tell_no_usage(told: list[Part]) -> None:
    del told[-1]


def change_the_id(told: list[Part]) -> None:
    told[5]["id"] = "cmpl-b"


def change_created(told: list[Part]) -> None:
    told[5]["created"] += 1


def end_twice(told: list[Part]) -> None:
    told.insert(-1, told[-2])


def end_otherwise(told: list[Part]) -> None:
    told[-2]["choices"][0]["finish_reason"] = "stop"


def never_end(told: list[Part]) -> None:
    told[-2]["choices"][0]["finish_reason"] = None


@pytest.mark.parametrize(
    ("spoil", "outcome", "reason"),
    [
        (double_a_token, "wrong", "another text from somewhere on"),
        (lose_a_token, "wrong", "another text from somewhere on"),
        (lose_the_last_token, "wrong", "a part of the text is missing"),
        (leak_the_ticket, "leaked", "kv_transfer_params"),
        (leak_a_null_ticket, "leaked", "kv_transfer_params"),
        (leak_ids, "leaked", "token_ids"),
        (leak_the_prompts_ids, "leaked", "prompt_token_ids"),
        (tell_usage_twice, "wrong", "more than one usage record"),
        (tell_another_usage, "wrong", "another usage"),
        (tell_what_was_pulled_as_cached, "wrong", "cached tokens that are not those of the prefill"),
        (tell_no_usage, "wrong", "no usage record"),
        (change_the_id, "wrong", "another id within one answer"),
        (change_created, "wrong", "another created within one answer"),
        (end_twice, "wrong", "something follows a choice's finish_reason"),
        (end_otherwise, "wrong", "another finish_reason"),
        (never_end, "wrong", "no finish_reason"),
    ],
)
def test_a_spoilt_stream_is_seen(spoil: Callable[[list[Part]], None], outcome: str, reason: str) -> None:
    one = ask(3, 7, COMPLETION)
    told = parts(one)
    spoil(told)
    assert one.expected[0].reason == "length", "the sample ends by itself; take another"
    found = verdict(one, told)
    assert found.outcome == outcome
    assert reason in found.reason


def test_a_stream_without_done_is_wrong_and_not_merely_failed() -> None:
    one = ask(3, 7, COMPLETION)
    assert verdict(one, parts(one), done=False) == Verdict("wrong", "no [DONE]: cut off without a word")


def test_something_after_done_is_seen() -> None:
    one = ask(3, 7, COMPLETION)
    got = sent(one, parts(one))
    got.body += b'data: {"choices": []}\n\n'
    assert judge(one, got) == Verdict("wrong", "something follows [DONE]")


def test_a_usage_record_that_nobody_asked_for_is_seen() -> None:
    one, counted = ask(3, 7, CHAT), ask(3, 7, COMPLETION)
    told = [*parts(one), parts(counted)[-1] | {name: parts(one)[0][name] for name in ("id", "object", "created")}]
    assert verdict(one, told) == Verdict("wrong", "a usage record that was not asked for")


def test_a_role_comes_once() -> None:
    one = ask(3, 7, CHAT)
    told = parts(one)
    assert verdict(one, [told[0], *told]) == Verdict("wrong", "a role twice")
    assert verdict(one, told[1:]) == Verdict("wrong", "no role")


def test_ids_that_were_asked_for_are_compared() -> None:
    one = ask(3, 7, TOLD_IDS)
    told = parts(one)
    told[4]["choices"][0]["token_ids"] = []
    assert verdict(one, told) == Verdict("wrong", "other token ids")
    told = parts(one)
    del told[0]["prompt_token_ids"]
    assert verdict(one, told) == Verdict("wrong", "prompt_token_ids 0 times")


def test_log_probabilities_are_compared() -> None:
    one = ask(3, 7, LOGPROBS)
    told = parts(one)
    told[4]["choices"][0]["logprobs"]["text_offset"][0] += 1
    assert verdict(one, told) == Verdict("wrong", "other log-probabilities")
    told = parts(one)
    told[-1]["choices"][0]["logprobs"] = None
    assert verdict(one, told) == Verdict("wrong", "log-probabilities are missing")


def test_a_choice_that_is_missing_is_seen() -> None:
    one = ask(3, 7, SEVERAL)
    told = [part for part in parts(one) if [choice["index"] for choice in part["choices"]] != [1]]
    assert verdict(one, told).outcome == "wrong"


def test_a_whole_answer_that_shows_the_hand_off_is_seen() -> None:
    one = ask(3, 7, WHOLE)
    (told,) = parts(one)
    assert verdict(one, [told | {"kv_transfer_params": None}]) == Verdict("leaked", "kv_transfer_params")
    nulls = {"prompt_logprobs": None, "prompt_token_ids": None}
    assert verdict(one, [told | nulls]) == Verdict("ok"), "vLLM tells these to everybody"


def test_an_address_anywhere_is_seen() -> None:
    one, secret = ask(3, 7, COMPLETION), "127.0.0.1:36123"
    told = [part | {"id": f"cmpl-___prefill_addr_{secret}"} for part in parts(one)]
    body = "an instance's address or process, in the body"
    assert judge(one, sent(one, told), [secret]) == Verdict("leaked", body)
    got = sent(one, parts(one))
    got.headers = [("X-Worker", f"http://{secret}")]
    assert judge(one, got, [secret]) == Verdict("leaked", "an instance's address or process, in a header")
    told_off = Exchange(status=502, end="whole", body=json.dumps({"error": {"message": f"no {secret}"}}).encode())
    assert judge(one, told_off, [secret]) == Verdict("failed", f"status 502; it shows {body}")


@pytest.mark.parametrize("kind", [COMPLETION, WHOLE])
def test_an_empty_answer_is_wrong(kind: Any) -> None:
    one = ask(3, 7, kind)
    assert judge(one, Exchange(status=200, end="whole")) == Verdict("wrong", "status 200 and an empty body")


def test_honest_failures() -> None:
    one = ask(3, 7, COMPLETION)
    some = sent(one, parts(one)[:5], done=False).body
    error = b'data: {"error": {"message": "worker_failed"}}\n\n'
    assert judge(one, Exchange(status=200, body=some + error, end="whole")) == Verdict("failed", "an error event")
    assert judge(one, Exchange(status=200, body=some, end="broken", error="X")).outcome == "failed"
    assert judge(one, Exchange(status=200, body=some, end="late", error="late")).outcome == "hung"
    assert judge(one, Exchange(status=503, body=b"busy", end="whole")).outcome == "failed"
    assert judge(one, Exchange(end="broken", error="X")).outcome == "failed"


def test_what_came_before_a_failure_must_be_right_too() -> None:
    one = ask(3, 7, COMPLETION)
    told = parts(one)[:8]
    double_a_token(told)
    body = sent(one, told, done=False).body
    assert judge(one, Exchange(status=200, body=body, end="broken", error="X")).outcome == "wrong"


def test_several_choices_may_be_refused_by_name_where_that_is_allowed() -> None:
    several, one = ask(3, 7, SEVERAL), ask(3, 7, COMPLETION)
    got = Exchange(status=400, end="whole", body=b'{"error": {"message": "n: only 1", "param": "n"}}')
    assert judge(several, got, may_refuse=True) == Verdict("refused", "n")
    assert judge(several, got).outcome == "failed"
    assert judge(one, got, may_refuse=True).outcome == "failed"
