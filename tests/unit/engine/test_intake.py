"""What an instance lets in, and the one line for everything it does not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.catalogue.generation import GenerationDefaults
from tandem.engine.intake import Intake
from tandem.engine.request import Request
from tandem.errors import RequestError
from tandem.protocol.kv import KVTransferParams
from tandem.protocol.openai import ChatRequest, CompletionRequest, parse
from tandem.text.detokenizer import Start
from tandem.text.tokenizer import Tokenizer

TICKET = {
    "do_remote_prefill": True,
    "remote_engine_id": "e",
    "remote_request_id": "t",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
}
KEEP = {"do_remote_decode": True}


def intake(folder: Path, **changes: Any) -> Intake:
    fields: dict[str, Any] = {
        "tokenizer": Tokenizer.from_folder(folder),
        "defaults": GenerationDefaults(
            eos_token_ids=(1,), temperature=0.5, top_p=0.8, top_k=9, min_p=0.02, repetition_penalty=1.1
        ),
        "names": ("m", "alias"),
        "role": "both",
        "vocab_size": 512,
        "max_model_len": 64,
    }
    return Intake(**(fields | changes))


def completion(door: Intake, **body: Any) -> Any:
    return door.completion(parse(msgspec.json.encode({"prompt": [5, 6]} | body), CompletionRequest), "id", 100.0)


def test_defaults_come_from_the_folder(tiny_model: Path) -> None:
    sampling = completion(intake(tiny_model)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.8, 9, 16)
    assert sampling.end_token_ids == {1}
    assert (sampling.repetition_penalty, sampling.min_p) == (1.1, 0.02)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logprobs) == (0, 0, None)
    asked = completion(
        intake(tiny_model), temperature=0, top_k=-1, ignore_eos=True, stop_token_ids=[7], seed=3
    ).sampling
    assert (asked.temperature, asked.top_k, asked.end_token_ids, asked.seed) == (0, 0, {7}, 3)


def test_text_is_tokenised_with_its_first_token(tiny_model: Path) -> None:
    assert completion(intake(tiny_model), prompt="a").prompt[0] == 0
    assert completion(intake(tiny_model), prompt=["a"]).prompt == completion(intake(tiny_model), prompt="a").prompt


def test_chat_fills_the_context_by_default(tiny_model: Path) -> None:
    body = parse(msgspec.json.encode({"messages": [{"role": "user", "content": "hi"}]}), ChatRequest)
    request = intake(tiny_model).chat(body, "id", 100.0)
    assert request.sampling.max_tokens == 64 - len(request.prompt)
    assert request.start is Start.ALONE
    assert completion(intake(tiny_model), prompt="a").start is Start.CONTINUES
    assert request.prompt.count(0) == 1, "the template writes <s>, the tokenizer must not add another"


def test_a_prefill_leg_makes_one_token(tiny_model: Path) -> None:
    request = completion(intake(tiny_model), kv_transfer_params={"do_remote_decode": True}, max_tokens=9, min_tokens=5)
    assert request.keep_for_remote
    assert (request.sampling.max_tokens, request.cache_tokens) == (1, 2)


def test_what_else_a_request_says(tiny_model: Path) -> None:
    request = completion(
        intake(tiny_model), n=3, priority=-5, deadline_seconds=10, cache_salt="a+/=", reservation="r", seed=1,
        presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.5, min_p=0, logprobs=0,
    )  # fmt: skip
    assert (request.choices, request.priority, request.salt, request.reservation) == ((0, 1, 2), -5, "a+/=", "r")
    assert request.deadline == 110.0
    sampling = request.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.5)
    assert (sampling.min_p, sampling.logprobs) == (0, 0)
    plain = completion(intake(tiny_model))
    assert (plain.choices, plain.priority, plain.salt, plain.reservation) == ((0,), 0, None, None)
    assert plain.deadline == math.inf
    assert (plain.output, plain.sent) == ((), 0)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs_of_a_chat(tiny_model: Path, fields: dict[str, Any], count: int | None) -> None:
    body = parse(msgspec.json.encode({"messages": [{"role": "user", "content": "hi"}]} | fields), ChatRequest)
    assert intake(tiny_model).chat(body, "id", 100.0).sampling.logprobs == count


def test_a_resumed_answer_counts_what_it_has(tiny_model: Path) -> None:
    resume = {"output_token_ids": [7, 8, 9], "sent": 2, "choice": 5}
    request = completion(intake(tiny_model), resume=resume, max_tokens=8)
    assert (request.output, request.sent, request.choices) == ((7, 8, 9), 2, (5,))
    assert (request.sampling.max_tokens, request.cache_tokens) == (8, 2 + 7)
    empty = completion(intake(tiny_model), resume={"output_token_ids": []})
    assert (empty.output, empty.choices, empty.sampling.max_tokens) == ((), (0,), 16)


def test_a_resumed_prefill_leg_makes_one_more_token(tiny_model: Path) -> None:
    resume = {"output_token_ids": [7, 8, 9]}
    request = completion(intake(tiny_model), resume=resume, max_tokens=1, kv_transfer_params=KEEP)
    assert (request.sampling.max_tokens, request.cache_tokens) == (4, 5)


def test_a_ticket_serves_several_choices_and_any_split(tiny_model: Path) -> None:
    request = completion(intake(tiny_model), n=2, kv_transfer_params=TICKET | {"tp_size": 8})
    assert request.choices == (0, 1)
    assert request.fetch_from.tp_size == 8


def test_flags_that_say_no_are_no_hand_off(tiny_model: Path) -> None:
    request = completion(intake(tiny_model), kv_transfer_params={"do_remote_decode": False, "do_remote_prefill": False})
    assert not request.keep_for_remote
    assert request.fetch_from is None


def test_ids_differ_when_a_client_repeats_one(tiny_model: Path) -> None:
    door = intake(tiny_model)
    assert completion(door).id != completion(door).id


REFUSED = [
    ({"prompt": [600]}, {}, "token id 600"),
    ({"prompt": [-1]}, {}, "token id -1"),
    ({"prompt": [5] * 60}, {"max_model_len": 50}, "60 tokens"),
    ({"max_tokens": 63}, {}, "together over this model's 64"),
    ({"model": "x"}, {}, "served: m, alias"),
    ({"kv_transfer_params": {"do_remote_decode": True}}, {"role": "decode"}, "this is a decode instance"),
    ({"kv_transfer_params": TICKET}, {"role": "prefill"}, "this is a prefill instance"),
    ({"kv_transfer_params": TICKET | {"do_remote_decode": True}}, {}, "exclude each other"),
    *(
        ({"kv_transfer_params": TICKET | {name: None}}, {}, f"{name}: is missing")
        for name in TICKET
        if "remote_" in name[:7]
    ),
    ({"kv_transfer_params": TICKET | {"remote_port": 70000}}, {}, "70000 is no port"),
    ({"kv_transfer_params": TICKET | {"remote_port": -1}}, {}, "-1 is no port"),
    ({"kv_transfer_params": TICKET | {"remote_port": 0}}, {}, "remote_port: is missing"),
    ({"kv_transfer_params": TICKET | {"remote_host": ""}}, {}, "remote_host: is missing"),
    ({"kv_transfer_params": TICKET | {"remote_host": "a\x00b"}}, {}, "remote_host: 'a.x00b' cannot be one"),
    ({"kv_transfer_params": TICKET | {"remote_host": "h" * 256}}, {}, "remote_host: 'hhh"),
    ({"kv_transfer_params": TICKET | {"remote_engine_id": "a\nb"}}, {}, "remote_engine_id: 'a.nb' cannot be one"),
    ({"kv_transfer_params": TICKET | {"remote_request_id": "\ud7ff"}}, {}, "remote_request_id: "),
    ({"kv_transfer_params": TICKET | {"tp_size": 0}}, {}, "tp_size: 0 is no number of ranks"),
    ({"kv_transfer_params": TICKET | {"remote_num_tokens": -3}}, {}, "remote_num_tokens: -3"),
    ({"kv_transfer_params": TICKET | {"remote_block_ids": [[-1]]}}, {}, "remote_block_ids: holds a negative"),
    ({"kv_transfer_params": TICKET | {"transfer_mode": "push"}}, {}, "transfer_mode: 'push' is not supported"),
    ({"kv_transfer_params": TICKET | {"do_remote_prefill": False}}, {}, "do_remote_prefill: is missing"),
    ({"prompt": ["a", "b"], "kv_transfer_params": TICKET}, {}, "prompt: 2 prompts"),
    ({"n": 2, "resume": {"output_token_ids": [7]}}, {}, "n: 2 answers cannot go on from one"),
    ({"resume": {"output_token_ids": [512]}}, {}, "resume.output_token_ids: token id 512"),
    ({"resume": {"output_token_ids": [-1]}}, {}, "resume.output_token_ids: token id -1"),
    ({"resume": {"output_token_ids": [7] * 9}, "max_tokens": 8}, {}, "resume.output_token_ids: 9 tokens are over"),
    ({"resume": {"output_token_ids": [7] * 62}, "kv_transfer_params": KEEP}, {}, "62 tokens after 2 leave no room"),
    ({"resume": {"output_token_ids": [], "choice": 128}}, {}, "resume.choice: 128"),
    ({"min_tokens": 17}, {}, "min_tokens: 17 is over max_tokens 16"),
]


@pytest.mark.parametrize(("body", "changes", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_refusals_name_the_field(tiny_model: Path, body: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        completion(intake(tiny_model, **changes), **body)
    assert caught.value.param is not None
    assert caught.value.status == 400 or caught.value.code == "model_not_found"


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=300),
    st.lists(st.lists(st.integers(), max_size=2), max_size=2), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip
FIELDS = [field.name for field in msgspec.structs.fields(KVTransferParams)]


@pytest.fixture(scope="module")
def door(tiny_model: Path) -> Intake:
    return intake(tiny_model)


def outcome(door: Intake, ticket: dict[str, Any]) -> Request | RequestError:
    try:
        return completion(door, kv_transfer_params=ticket)
    except RequestError as error:
        return error


@given(ticket=st.dictionaries(st.sampled_from(FIELDS), WRONG, max_size=4), whole=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_ticket_is_taken_or_refused(door: Intake, ticket: dict[str, Any], whole: bool) -> None:
    taken = outcome(door, (TICKET if whole else {}) | ticket)
    if isinstance(taken, Request):
        assert taken.fetch_from is None or 0 < (taken.fetch_from.remote_port or 0) < 65536
    else:
        assert taken.status == 400
        assert (taken.param or "").startswith("kv_transfer_params")
        assert "\n" not in str(taken)


@given(value=WRONG)
@settings(max_examples=60, deadline=None)
def test_what_is_no_ticket_at_all_is_refused(door: Intake, value: Any) -> None:
    if value is None or isinstance(value, dict):
        return
    with pytest.raises(RequestError, match=r"^kv_transfer_params: "):
        completion(door, kv_transfer_params=value)


@pytest.mark.parametrize("way", ["completion", "chat"])
def test_a_text_that_is_far_too_long_is_refused_before_it_is_encoded(tiny_model: Path, way: str) -> None:
    door, text = intake(tiny_model), "the quick brown fox " * 10**6
    encoded: list[int] = []
    encode = door.tokenizer.encode
    door.tokenizer.encode = lambda some, **how: encoded.append(len(some)) or encode(some, **how)  # type: ignore
    chat = parse(msgspec.json.encode({"messages": [{"role": "user", "content": text}]}), ChatRequest)
    ask = {"completion": lambda: completion(door, prompt=text), "chat": lambda: door.chat(chat, "id", 100.0)}[way]
    with pytest.raises(RequestError, match="20000000 characters are far more than this model's 64 tokens; shorten it"):
        ask()
    assert sum(encoded) < 100_000
