"""An HTTP body becomes an engine request: prompt to tokens, limits checked, the hand-off's fields understood."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass

from tandem.catalogue.generation import GenerationDefaults
from tandem.engine.request import Request
from tandem.engine.sampling import SamplingParams
from tandem.engine.ticket_check import check_hand_off
from tandem.errors import RequestError
from tandem.protocol.identity import Role
from tandem.protocol.kv import KVTransferParams, Resume
from tandem.protocol.openai import MAX_CHOICES, ChatRequest, CompletionRequest, GenerationRequest
from tandem.text.detokenizer import Start
from tandem.text.tokenizer import Tokenizer

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's `max_tokens` for completions; a chat answer may fill the context."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What requests are checked against."""

    tokenizer: Tokenizer
    defaults: GenerationDefaults
    names: tuple[str, ...]
    """Served model names."""
    role: Role
    vocab_size: int
    max_model_len: int

    def completion(self, body: CompletionRequest, request_id: str, arrived: float) -> Request:
        """Admit a completion.

        Args:
            body: What is asked.
            request_id: The client's or the gateway's.
            arrived: When, on the monotonic clock; its deadline counts from there.

        Raises:
            RequestError: Naming the field at fault.
        """
        prompt = body.single_prompt()
        if isinstance(prompt, str):
            self._refuse_endless(prompt, self.max_model_len, "prompt")
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        limit = body.max_tokens or min(DEFAULT_COMPLETION_TOKENS, self._left(tokens))
        return self._request(body, request_id, arrived, tokens, limit, "prompt", Start.CONTINUES)

    def chat(self, body: ChatRequest, request_id: str, arrived: float) -> Request:
        """Admit a chat completion; like `completion`.

        Raises:
            RequestError: Naming the field at fault.
        """
        if self.tokenizer.chat is None:
            raise RequestError("this model has no chat format; use /v1/completions", param="messages")
        messages = [{"role": message.role, "content": message.text} for message in body.messages]
        # A template may leave much of a conversation out, such as earlier thoughts.
        self._refuse_endless("".join(one["content"] for one in messages), 4 * self.max_model_len, "messages")
        tokens = self.tokenizer.chat.encode(messages)
        limit = body.token_limit or self._left(tokens)
        return self._request(body, request_id, arrived, tokens, limit, "messages", self.tokenizer.chat.start)

    def _left(self, tokens: list[int]) -> int:
        return max(self.max_model_len - len(tokens), 1)

    def _request(
        self,
        body: GenerationRequest,
        request_id: str,
        arrived: float,
        tokens: list[int],
        limit: int,
        param: str,
        start: Start,
    ) -> Request:
        resume, hand_off = body.resume or Resume(output_token_ids=[]), body.kv_transfer_params or KVTransferParams()
        keep, output = hand_off.do_remote_decode, resume.output_token_ids
        # A prefill leg's max_tokens means one new token, whatever was generated before.
        limit = len(output) + 1 if keep else limit
        self._check_name(body.model)
        self._check_resume(body, len(tokens), limit)
        self._check_tokens(tokens, limit, param)
        self._check_range(body.stop_token_ids or [], "stop_token_ids")
        check_hand_off(hand_off, self.role)
        _check_options(body, limit, keep=keep)
        return Request(
            # A client may send the same id twice; the engine's own must differ.
            id=f"{request_id}-{uuid.uuid4().hex[:8]}",
            prompt=tokens,
            sampling=SamplingParams.from_request(body, self.defaults, limit),
            choices=tuple(range(body.n or 1)) if body.resume is None else (resume.choice,),
            output=tuple(output),
            sent=resume.sent,
            start=start,
            keep_for_remote=keep,
            ticket_name=hand_off.remote_request_id if keep else None,
            fetch_from=hand_off if hand_off.do_remote_prefill else None,
            reservation=body.reservation,
            priority=body.priority,
            deadline=arrived + (body.deadline_seconds or math.inf),
            salt=body.cache_salt,
        )

    def _refuse_endless(self, text: str, tokens: int, param: str) -> None:
        if self.tokenizer.exceeds(text, tokens):
            message = f"{param}: {len(text)} characters are far more than this model's {self.max_model_len} tokens"
            raise RequestError(f"{message}; shorten it", code="context_length_exceeded", param=param)

    def _check_name(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            served = ", ".join(self.names)
            message = f"model: {name} is not served here; served: {served}"
            raise RequestError(message, status=404, code="model_not_found", param="model")

    def _check_tokens(self, tokens: list[int], limit: int, param: str) -> None:
        if not tokens:
            raise RequestError(f"{param}: comes to no tokens at all; send at least one", param=param)
        self._check_range(tokens, param)
        if len(tokens) >= self.max_model_len:
            message = (
                f"{param}: {len(tokens)} tokens leave no room for an answer within this model's {self.max_model_len}; "
                "shorten it"
            )
            raise RequestError(message, code="context_length_exceeded", param=param)
        if len(tokens) + limit > self.max_model_len:
            message = (
                f"{param}: {len(tokens)} tokens and max_tokens {limit} are together over this model's "
                f"{self.max_model_len}; shorten one of them"
            )
            raise RequestError(message, code="context_length_exceeded", param=param)

    def _check_range(self, tokens: list[int], param: str) -> None:
        for token in (min(tokens, default=0), max(tokens, default=0)):
            if not 0 <= token < self.vocab_size:
                raise RequestError(f"{param}: token id {token} is outside 0..{self.vocab_size - 1}", param=param)

    def _check_resume(self, body: GenerationRequest, prompt: int, limit: int) -> None:
        if body.resume is None:
            return
        where, output = "resume.output_token_ids", body.resume.output_token_ids
        if (body.n or 1) > 1:
            raise RequestError(f"n: {body.n} answers cannot go on from one; resume each by itself", param="n")
        if body.resume.choice >= MAX_CHOICES:
            message = f"resume.choice: {body.resume.choice} is outside 0..{MAX_CHOICES - 1}"
            raise RequestError(message, param="resume.choice")
        self._check_range(output, where)
        if len(output) > limit:
            raise RequestError(f"{where}: {len(output)} tokens are over max_tokens {limit}; raise it", param=where)
        if output and prompt + min(len(output) + 1, limit) > self.max_model_len:
            message = (
                f"{where}: {len(output)} tokens after {prompt} leave no room within {self.max_model_len}; send fewer"
            )
            raise RequestError(message, code="context_length_exceeded", param=where)


def _check_options(body: GenerationRequest, limit: int, *, keep: bool) -> None:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: needs stream: true; set it or leave this out", param="stream_options")
    if body.min_tokens > limit and not keep:
        raise RequestError(f"min_tokens: {body.min_tokens} is over max_tokens {limit}", param="min_tokens")
