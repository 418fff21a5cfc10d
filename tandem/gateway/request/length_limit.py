"""The longest request a gateway lets through, by the model's own tokenizer.

What a chat format or a first `<s>` adds is not counted here: the prefill instance counts everything, and its limit is
the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from tandem.errors import RequestError
from tandem.gateway.request.body import ClientBody
from tandem.protocol.json_body import decode_body
from tandem.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class LengthLimit:
    """Counts the tokens of requests that might be too long."""

    tokenizer: Tokenizer
    max_model_len: int
    """Most tokens of prompt plus answer."""

    async def check(self, body: ClientBody) -> None:
        """Refuse what is too long.

        Raises:
            RequestError: 400, with the numbers.
        """
        name, prompt = body.prompt
        # A token has a byte at least, so that few requests need to be counted.
        if len(prompt) + body.max_tokens <= self.max_model_len:
            return
        # In a thread: a long prompt takes its time, and every stream would wait for it.
        tokens = await asyncio.to_thread(self._tokens, prompt)
        if tokens + body.max_tokens > self.max_model_len:
            message = (
                f"{name}: {tokens} tokens and {body.max_tokens} of the answer are together over this service's "
                f"{self.max_model_len}; shorten one of them"
            )
            raise RequestError(message, code="context_length_exceeded", param=name)

    def _tokens(self, prompt: bytes) -> int:
        try:
            return self._count(decode_body(prompt, Any))
        except RecursionError:
            return 0  # no prompt is nested like this; the instance says so

    def _count(self, part: Any) -> int:
        match part:
            case str():
                return len(self.tokenizer.encode(part, special=False))
            case int():
                return 1
            case list():
                return sum(map(self._count, part))
            case {"content": inner} | {"text": inner}:
                return self._count(inner)
        return 0
