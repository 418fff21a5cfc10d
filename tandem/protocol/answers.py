"""The OpenAI answers an instance and the gateway send, as plain dictionaries ready for `msgspec.json.encode`.

Source: OpenAI API reference. vLLM's extensions: `kv_transfer_params` at the top level, for prefill instances;
`token_ids` of a choice, and `prompt_token_ids`, which stand at the choice of a completion and at the top level of a
chat.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from tandem.errors import RequestError

Answer = dict[str, Any]
FinishReason = Literal["stop", "length", "abort", "error"]
Endpoint = Literal["completion", "chat"]

OBJECTS: Final = {
    ("completion", False): "text_completion",
    ("completion", True): "text_completion",
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
}

DEADLINE_EXCEEDED: Final = "deadline_exceeded"
TICKET_RELEASED: Final = "ticket_released"
ENDINGS: Final = {504: DEADLINE_EXCEEDED, 409: TICKET_RELEASED}
"""Codes of requests that an instance ended because somebody wanted it so: it has not failed."""


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt, those that did not have to be computed."""

    def answer(self) -> Answer:
        """As OpenAI's `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Piece(msgspec.Struct, frozen=True):
    """What is told of one choice: all of it, or what a chunk of a stream adds."""

    text: str = ""
    reason: FinishReason | None = None
    index: int = 0
    logprobs: Answer | None = None
    """In OpenAI's shape for the endpoint."""
    tokens: Sequence[int] | None = None
    """Ids of its tokens, where they were asked for."""
    prompt: Sequence[int] | None = None
    """Ids of the prompt, where they were asked for and not told yet."""


NOTHING: Final = Piece()


class AnswerHead(msgspec.Struct, frozen=True):
    """What every piece of one answer repeats."""

    endpoint: Endpoint
    id: str
    model: str
    created: int

    @classmethod
    def begin(cls, endpoint: Endpoint, request_id: str, model: str) -> AnswerHead:
        """The head of an answer that starts now."""
        prefix = "chatcmpl" if endpoint == "chat" else "cmpl"
        return cls(endpoint, f"{prefix}-{request_id}", model, int(time.time()))

    def _envelope(self, *, streamed: bool, choices: list[Answer]) -> Answer:
        return {
            "id": self.id,
            "object": OBJECTS[self.endpoint, streamed],
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def whole(self, pieces: Sequence[Piece], usage: Usage, ticket: Answer | None = None) -> Answer:
        """The answer to a request that did not ask for a stream: its choices, in order."""
        answer = self._envelope(streamed=False, choices=[self._choice(piece, streamed=False) for piece in pieces])
        return answer | {"usage": usage.answer()} | self._beside(pieces[0], ticket)

    def role_chunk(self, piece: Piece = NOTHING) -> Answer:
        """The first chunk of each choice of a chat stream; of `piece`, it tells the index and the prompt."""
        choice = {"index": piece.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return self._envelope(streamed=True, choices=[choice]) | self._beside(piece, None)

    def chunk(self, piece: Piece, ticket: Answer | None = None) -> Answer:
        """One piece of a stream; a prefill instance's first one carries the ticket."""
        answer = self._envelope(streamed=True, choices=[self._choice(piece, streamed=True)])
        return answer | self._beside(piece, ticket)

    def _choice(self, piece: Piece, *, streamed: bool) -> Answer:
        choice: Answer = {"index": piece.index, **self._body(piece.text, streamed=streamed), "logprobs": piece.logprobs}
        choice["finish_reason"] = piece.reason
        if piece.tokens is not None:
            choice["token_ids"] = piece.tokens
        if piece.prompt is not None and self.endpoint == "completion":
            choice["prompt_token_ids"] = piece.prompt
        return choice

    def _body(self, text: str, *, streamed: bool) -> Answer:
        if self.endpoint == "completion":
            return {"text": text}
        if streamed:
            return {"delta": {"content": text} if text else {}}
        return {"message": {"role": "assistant", "content": text}}

    def _beside(self, piece: Piece, ticket: Answer | None) -> Answer:
        """What stands at the top level, besides what every answer has."""
        told: Answer = {} if ticket is None else {"kv_transfer_params": ticket}
        if piece.prompt is not None and self.endpoint == "chat":
            told["prompt_token_ids"] = piece.prompt
        return told

    def usage_chunk(self, usage: Usage) -> Answer:
        """The last chunk of a stream that asked for `include_usage`."""
        return self._envelope(streamed=True, choices=[]) | {"usage": usage.answer()}


def error_answer(error: RequestError) -> Answer:
    """A refusal in OpenAI's error shape."""
    return error_body(str(error), status=error.status, code=error.code, param=error.param)


def error_body(message: str, *, status: int, code: str | None = None, param: str | None = None) -> Answer:
    """OpenAI's error shape; the `type` follows from the status."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_list(names: tuple[str, ...], created: int, max_model_len: int) -> Answer:
    """Answer of `GET /v1/models`."""
    models = [
        {"id": name, "object": "model", "created": created, "owned_by": "tandem", "max_model_len": max_model_len}
        for name in names
    ]
    return {"object": "list", "data": models}
