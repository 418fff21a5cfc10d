"""What is known of a prefill that the decode leg and its client's usage go back to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

MOST_TOKENS: Final = 2**53
"""Up to here a sum of counts stays exact."""


def counted(told: Any) -> int | None:
    """A number of tokens as somebody told it; None for what can be none."""
    return told if type(told) is int and 0 <= told < MOST_TOKENS else None


class PromptDetails(msgspec.Struct, frozen=True):
    """Of a prompt's tokens."""

    cached_tokens: Any = None
    """Those whose keys and values were there already."""


class PromptUsage(msgspec.Struct, frozen=True):
    """What an instance tells of a prompt it has computed."""

    prompt_tokens: Any = 0
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
        return counted(details.cached_tokens) if details else None

    @property
    def prompt_tokens(self) -> int | None:
        """What its worker counted in the prompt; None where it did not say."""
        return counted(self.usage.prompt_tokens) if self.usage else None
