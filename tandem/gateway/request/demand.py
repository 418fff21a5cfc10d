"""How much a request asks for, as far as it can be told without a tokenizer, and which prompts begin alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from tandem.gateway.request.body import ClientBody

BYTES_PER_TOKEN: Final = 4
"""Of text in JSON; about right for English, and too few tokens for scripts whose characters have several bytes."""
HEADROOM: Final = 256
"""Most tokens of an answer that are counted on before they are there: most answers end before their limit."""
BLOCK_BYTES: Final = 512
"""Of a prompt's JSON that are compared as one: about eight KV blocks of 16 tokens."""
ROOT: Final = ("model", "cache_salt", "tools", "documents", "chat_template", "chat_template_kwargs")
"""Fields that decide what stands before the prompt, or whose cache it is in."""


@dataclass(frozen=True)
class Demand:
    """Of one request for one choice."""

    body: ClientBody

    @cached_property
    def prompt_tokens(self) -> int:
        """About how many the prompt has; exact where it is given as ids."""
        _, raw = self.body.prompt
        return 1 + (raw.count(b",") if _is_ids(raw) else len(raw) // BYTES_PER_TOKEN)

    @cached_property
    def answer_tokens(self) -> int:
        """How many of the answer are counted on."""
        return min(self.body.max_answer or HEADROOM, HEADROOM)

    @property
    def tokens(self) -> int:
        """Of both."""
        return self.prompt_tokens + self.answer_tokens

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """A number for each whole block of the prompt, which stands for it and everything before it."""
        return tuple(self._chain())

    def _chain(self) -> Iterator[int]:
        _, raw = self.body.prompt
        known = hash(tuple(bytes(self.body.fields.get(name, b"")) for name in ROOT))
        for start in range(0, len(raw) - BLOCK_BYTES + 1, BLOCK_BYTES):
            known = hash((known, raw[start : start + BLOCK_BYTES]))
            yield known


def _is_ids(raw: bytes) -> bool:
    """Whether a prompt's JSON is a list of numbers."""
    return raw[:1] == b"[" and raw[1:64].lstrip()[:1].isdigit()
