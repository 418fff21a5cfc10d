"""What an instance lets in, and the one line for everything it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tandem.catalogue.generation import GenerationDefaults
from tandem.engine.intake import Intake
from tandem.errors import RequestError
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


def intake(folder: Path, **changes: Any) -> Intake:
    fields: dict[str, Any] = {
        "tokenizer": Tokenizer.from_folder(folder),
        "defaults": GenerationDefaults(eos_token_ids=(1,), temperature=0.5, top_p=0.8, top_k=9),
        "names": ("m", "alias"),
        "role": "both",
        "vocab_size": 512,
        "max_model_len": 64,
    }
    return Intake(**(fields | changes))


def completion(door: Intake, **body: Any) -> Any:
    return door.completion(parse(msgspec.json.encode({"prompt": [5, 6]} | body), CompletionRequest), "id")


def test_defaults_come_from_the_folder(tiny_model: Path) -> None:
    sampling = completion(intake(tiny_model)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.8, 9, 16)
    assert sampling.end_token_ids == {1}
    asked = completion(
        intake(tiny_model), temperature=0, top_k=-1, ignore_eos=True, stop_token_ids=[7], seed=3
    ).sampling
    assert (asked.temperature, asked.top_k, asked.end_token_ids, asked.seed) == (0, 0, {7}, 3)


def test_text_is_tokenised_with_its_first_token(tiny_model: Path) -> None:
    assert completion(intake(tiny_model), prompt="a").prompt[0] == 0
    assert completion(intake(tiny_model), prompt=["a"]).prompt == completion(intake(tiny_model), prompt="a").prompt


def test_chat_fills_the_context_by_default(tiny_model: Path) -> None:
    body = parse(msgspec.json.encode({"messages": [{"role": "user", "content": "hi"}]}), ChatRequest)
    request = intake(tiny_model).chat(body, "id")
    assert request.sampling.max_tokens == 64 - len(request.prompt)
    assert request.start is Start.ALONE
    assert completion(intake(tiny_model), prompt="a").start is Start.CONTINUES
    assert request.prompt.count(0) == 1, "the template writes <s>, the tokenizer must not add another"


def test_a_prefill_leg_makes_one_token(tiny_model: Path) -> None:
    request = completion(intake(tiny_model), kv_transfer_params={"do_remote_decode": True}, max_tokens=9, min_tokens=5)
    assert request.keep_for_remote
    assert (request.sampling.max_tokens, request.cache_tokens) == (1, 2)


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
]


@pytest.mark.parametrize(("body", "changes", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_refusals_name_the_field(tiny_model: Path, body: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        completion(intake(tiny_model, **changes), **body)
    assert caught.value.param is not None
