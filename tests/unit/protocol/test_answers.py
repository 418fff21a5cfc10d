"""The answers, read back with the official client's own types."""

from __future__ import annotations

import msgspec
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tandem.errors import RequestError
from tandem.protocol.answers import AnswerHead, Piece, Usage, error_answer, error_body, model_list

CHAT = AnswerHead("chat", "chatcmpl-1", "m", 7)
COMPLETION = AnswerHead("completion", "cmpl-1", "m", 7)
USAGE = Usage(3, 4)


def test_begin() -> None:
    head = AnswerHead.begin("chat", "r1", "m")
    assert (head.id, head.model) == ("chatcmpl-r1", "m")
    assert AnswerHead.begin("completion", "r1", "m").id == "cmpl-r1"


def test_whole_answers() -> None:
    chat = ChatCompletion.model_validate(CHAT.whole([Piece("hi", "stop")], USAGE))
    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == ("hi", "stop")
    assert chat.usage is not None
    assert chat.usage.total_tokens == 7
    completion = Completion.model_validate(COMPLETION.whole([Piece("a", "length"), Piece("b", "stop", 1)], USAGE))
    told = [(choice.index, choice.text, choice.finish_reason) for choice in completion.choices]
    assert told == [(0, "a", "length"), (1, "b", "stop")]


def test_a_ticket_stands_at_the_top_level() -> None:
    ticket = {"remote_host": "h"}
    for answer in (COMPLETION.whole([Piece("x", "length")], USAGE, ticket), CHAT.chunk(Piece(), ticket)):
        assert answer["kv_transfer_params"] is ticket
    assert "kv_transfer_params" not in COMPLETION.whole([Piece("x", "length")], USAGE)


def test_token_ids_stand_where_vllm_has_them() -> None:
    piece = Piece("hi", "stop", 1, tokens=[4, 5], prompt=[1, 2, 3])
    for answer in (COMPLETION.whole([piece], USAGE), COMPLETION.chunk(piece)):
        assert (answer["choices"][0]["token_ids"], answer["choices"][0]["prompt_token_ids"]) == ([4, 5], [1, 2, 3])
        assert "prompt_token_ids" not in answer
    for answer in (CHAT.whole([piece], USAGE), CHAT.chunk(piece)):
        assert (answer["choices"][0]["token_ids"], answer["prompt_token_ids"]) == ([4, 5], [1, 2, 3])
        assert "prompt_token_ids" not in answer["choices"][0]
    assert CHAT.role_chunk(piece)["prompt_token_ids"] == [1, 2, 3]
    assert "token_ids" not in COMPLETION.chunk(Piece("hi"))["choices"][0]


def test_chunks() -> None:
    role = ChatCompletionChunk.model_validate(CHAT.role_chunk(Piece(index=2)))
    assert (role.choices[0].index, role.choices[0].delta.role) == (2, "assistant")
    piece = ChatCompletionChunk.model_validate(CHAT.chunk(Piece("hi")))
    assert (piece.choices[0].delta.content, piece.choices[0].finish_reason) == ("hi", None)
    last = ChatCompletionChunk.model_validate(CHAT.chunk(Piece("", "stop")))
    assert (last.choices[0].delta.content, last.choices[0].finish_reason) == (None, "stop")
    usage = ChatCompletionChunk.model_validate(CHAT.usage_chunk(USAGE))
    assert usage.choices == []
    assert usage.usage is not None
    assert COMPLETION.chunk(Piece("hi"))["choices"][0]["text"] == "hi"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (404, "not_found_error"), (429, "rate_limit_error"), (502, "server_error")],
)
def test_the_type_of_an_error_follows_from_its_status(status: int, kind: str) -> None:
    assert error_body("m", status=status)["error"]["type"] == kind


def test_a_refusal_keeps_its_particulars() -> None:
    error = RequestError("n: no", status=400, code="c", param="n")
    assert error_answer(error) == {
        "error": {"message": "n: no", "type": "invalid_request_error", "param": "n", "code": "c"}
    }


def test_models() -> None:
    listing = model_list(("a", "b"), 7, 128)
    assert [model["id"] for model in listing["data"]] == ["a", "b"]
    assert msgspec.json.decode(msgspec.json.encode(listing)) == listing
