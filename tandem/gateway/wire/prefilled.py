"""What is known of a prefill that the decode leg and its client's usage go back to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec


class PromptDetails(msgspec.Struct, frozen=True):
    """Of a prompt's tokens."""

    cached_tokens: int | None = None
    """Those whose keys and values were there already."""


class PromptUsage(msgspec.Struct, frozen=True):
    """What an instance tells of a prompt it has computed."""

    prompt_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


@dataclass(slots=True)
class Prefilled:
    """Of one prefill leg; times are seconds of the monotonic clock."""

    sent: float = field(default_factory=time.monotonic)
    ended: float | None = None
    """When its answer was read to its end."""
    usage: PromptUsage | None = None
    """As its worker told it."""

    @property
    def cached_tokens(self) -> int | None:
        """What its worker found in its prefix cache; None where it did not say."""
        details = self.usage and self.usage.prompt_tokens_details
        return details.cached_tokens if details else None
