"""The OpenAI answers of a mock instance, in the shapes of vLLM and of tandem's own engine.

They are written down again here, and not imported from tandem, so that a mistake in tandem's shapes is seen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.router.mock.generation import Logprob, Step
from chaos.router.mock.language import cached, shown
from chaos.router.mock.wish import Dialect, Wish

Answer = dict[str, Any]

MODEL = "mock"


@dataclass(kw_only=True)
class Wire:
    """Puts one request's answer into JSON objects."""

    wish: Wish
    request_id: str
    dialect: Dialect
    created: int = field(default_factory=lambda: int(time.time()))
    cached: int = field(init=False)
    """Tokens of the prompt that are told to have been in a prefix cache."""
    _told: set[int] = field(default_factory=set)
    """Choices whose prompt's ids were told."""

    def __post_init__(self) -> None:
        self.cached = cached(self.wish.prompt)

    def roles(self) -> list[Answer]:
        """The first chunks of a chat, one for each choice; a client that has text already has had them."""
        if not self.wish.chat or self.wish.sent:
            return []
        chunks = []
        for choice in self.wish.choices:
            delta = {"role": "assistant", "content": ""}
            chunk = self._envelope([{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}])
            if self.wish.token_ids and not chunks:
                chunk["prompt_token_ids"] = self.wish.prompt
            chunks.append(chunk)
        return chunks

    def chunk(self, index: int, step: Step, ticket: Answer | None = None) -> Answer:
        """What a step adds to a stream."""
        chunk = self._envelope([self._choice(index, step, whole=False)])
        return chunk | ({} if ticket is None else {"kv_transfer_params": ticket})

    def usage(self, completion_tokens: int) -> Answer:
        """The last chunk of a stream whose client asked for the counts."""
        return self._envelope([]) | {"usage": self._usage(completion_tokens)}

    def whole(self, steps: dict[int, Step], completion_tokens: int, ticket: Answer | None) -> Answer:
        """An answer that is not streamed."""
        choices = [self._choice(index, step, whole=True) for index, step in steps.items()]
        answer = self._envelope(choices, whole=True) | {"usage": self._usage(completion_tokens)}
        if self.wish.chat and self.wish.token_ids:
            answer["prompt_token_ids"] = self.wish.prompt
        if self.dialect == "vllm":  # its fields are all there, as nulls where they say nothing
            answer = {"prompt_logprobs": None, "kv_transfer_params": None, **answer}
        return answer | ({} if ticket is None else {"kv_transfer_params": ticket})

    def _envelope(self, choices: list[Answer], *, whole: bool = False) -> Answer:
        kind = ("chat.completion" if whole else "chat.completion.chunk") if self.wish.chat else "text_completion"
        name = f"{'chatcmpl' if self.wish.chat else 'cmpl'}-{self.request_id}"
        return {"id": name, "object": kind, "created": self.created, "model": MODEL, "choices": choices}

    def _choice(self, index: int, step: Step, *, whole: bool) -> Answer:
        choice: Answer = {"index": index, **self._text(step.text, whole=whole)}
        choice["logprobs"] = self._logprobs(step.logprobs)
        choice["finish_reason"] = step.reason
        if self.wish.token_ids:
            choice["token_ids"] = step.tokens
            if not self.wish.chat and index not in self._told:
                self._told.add(index)
                choice["prompt_token_ids"] = self.wish.prompt
        return choice

    def _text(self, text: str, *, whole: bool) -> Answer:
        if not self.wish.chat:
            return {"text": text}
        return {"message": {"role": "assistant", "content": text}} if whole else {"delta": {"content": text}}

    def _logprobs(self, told: Sequence[Logprob]) -> Answer | None:
        if not told:
            return None
        return {"content": [one.told() for one in told]} if self.wish.chat else completion_logprobs(told)

    def _usage(self, completion_tokens: int) -> Answer:
        prompt = len(self.wish.prompt)
        counts: Answer = {
            "prompt_tokens": prompt,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt + completion_tokens,
        }
        if self.dialect == "vllm" and not self.cached:  # it tells no zero, even with --enable-prompt-tokens-details
            return counts
        return counts | {"prompt_tokens_details": {"cached_tokens": self.cached}}


def completion_logprobs(told: Sequence[Logprob]) -> Answer:
    """As a completion tells them."""
    return {
        "tokens": [shown(one.token) for one in told],
        "token_logprobs": [one.value for one in told],
        "top_logprobs": [{shown(token): value for token, value in one.top} for one in told],
        "text_offset": [one.offset for one in told],
    }


def joined(steps: Sequence[Step]) -> Step:
    """Many steps as one."""
    return Step(
        tokens=tuple(token for step in steps for token in step.tokens),
        text="".join(step.text for step in steps),
        logprobs=tuple(one for step in steps for one in step.logprobs),
        reason=steps[-1].reason,
    )


def error_answer(message: str, status: int, code: str | int | None = None, param: str | None = None) -> Answer:
    """OpenAI's error shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status if code is None else code}}
