"""Which requests are too long, and which are not even counted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import RequestError
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.length_limit import LengthLimit
from tandem.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_model)


def check(tokenizer: Tokenizer, most: int, raw: bytes) -> None:
    asyncio.run(LengthLimit(tokenizer, most).check(ClientBody.decode(raw)))


TEXT = "def main(arguments):" * 20


def shapes(text: str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": text}]
    return [
        {"prompt": text},
        {"prompt": [text]},
        {"messages": [{"role": "user", "content": text}]},
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": parts}]},
    ]


@pytest.mark.parametrize("body", shapes(TEXT), ids=lambda body: json.dumps(body)[:20])
@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_prompt_and_answer_have_room_or_not(tokenizer: Tokenizer, body: dict[str, Any], limit: str) -> None:
    raw, count = json.dumps(body | {limit: 7}).encode(), len(tokenizer.encode(TEXT, special=False))
    assert count + 7 < len(TEXT)
    check(tokenizer, count + 7, raw)
    with pytest.raises(RequestError) as refusal:
        check(tokenizer, count + 6, raw)
    name = next(iter(body))
    assert str(refusal.value) == (
        f"{name}: {count} tokens and 7 of the answer are together over this service's {count + 6}; shorten one of them"
    )
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", name)


def test_token_ids_count_one_each(tokenizer: Tokenizer) -> None:
    raw = json.dumps({"prompt": [300] * 50}).encode()
    check(tokenizer, 51, raw)
    with pytest.raises(RequestError, match="50 tokens and 1 of the answer"):
        check(tokenizer, 50, raw)


@pytest.mark.parametrize("raw", [b"{}", b'{"prompt": null}', b'{"prompt": {"a": "' + b"x" * 99 + b'"}}'])
def test_what_is_no_prompt_is_the_instances_to_refuse(tokenizer: Tokenizer, raw: bytes) -> None:
    check(tokenizer, 9, raw)


def test_nesting_is_the_instances_to_refuse(tokenizer: Tokenizer) -> None:
    check(tokenizer, 9, b'{"prompt": ' + b"[" * 400 + b"1" + b"]" * 400 + b"}")
