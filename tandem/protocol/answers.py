"""The OpenAI answers an instance and the gateway send, as plain dictionaries ready for `msgspec.json.encode`.

Source: OpenAI API reference; `kv_transfer_params` at the top level is vLLM's extension for prefill instances.
"""

from __future__ import annotations

import time
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


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int

    def answer(self) -> Answer:
        """As OpenAI's `usage` object."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


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

    def whole(self, text: str, reason: FinishReason, usage: Usage, ticket: Answer | None = None) -> Answer:
        """The answer to a request that did not ask for a stream."""
        body: Answer = (
            {"message": {"role": "assistant", "content": text}} if self.endpoint == "chat" else {"text": text}
        )
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": reason}
        answer = self._envelope(streamed=False, choices=[choice]) | {"usage": usage.answer()}
        return answer if ticket is None else answer | {"kv_transfer_params": ticket}

    def role_chunk(self) -> Answer:
        """The first chunk of a chat stream."""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return self._envelope(streamed=True, choices=[choice])

    def chunk(self, text: str, reason: FinishReason | None, ticket: Answer | None = None) -> Answer:
        """One piece of a stream; a prefill instance's last one carries the ticket."""
        body: Answer = {"delta": {"content": text} if text else {}} if self.endpoint == "chat" else {"text": text}
        choice = {"index": 0, **body, "logprobs": None, "finish_reason": reason}
        chunk = self._envelope(streamed=True, choices=[choice])
        return chunk if ticket is None else chunk | {"kv_transfer_params": ticket}

    def usage_chunk(self, usage: Usage) -> Answer:
        """The last chunk of a stream that asked for `include_usage`."""
        return self._envelope(streamed=True, choices=[]) | {"usage": usage.answer()}


def error_answer(error: RequestError) -> Answer:
    """A refusal in OpenAI's error shape."""
    return error_body(str(error), status=error.status, code=error.code, param=error.param)


def error_body(message: str, *, status: int, code: str | None = None, param: str | None = None) -> Answer:
    """OpenAI's error shape; the `type` follows from the status."""
    kinds = {404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_list(names: tuple[str, ...], created: int, max_model_len: int) -> Answer:
    """Answer of `GET /v1/models`."""
    models = [
        {"id": name, "object": "model", "created": created, "owned_by": "tandem", "max_model_len": max_model_len}
        for name in names
    ]
    return {"object": "list", "data": models}
