"""How a request wants its tokens drawn: its own fields over the model folder's defaults."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TypeVar

from tandem.catalogue.generation import GenerationDefaults
from tandem.protocol.openai import GenerationRequest

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Everything that decides which token comes next and when an answer ends."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps every token."""
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    """An answer has at least this many tokens before an end token or a stop string can end it."""
    end_token_ids: frozenset[int] = frozenset()
    """Tokens that end the answer and are not shown."""
    stops: tuple[str, ...] = ()

    @classmethod
    def from_request(cls, request: GenerationRequest, defaults: GenerationDefaults, max_tokens: int) -> SamplingParams:
        """Fill what the request leaves out; without a seed a random one is drawn, and handed over with the blocks."""
        ends = set(request.stop_token_ids or ())
        if not request.ignore_eos:
            ends |= set(defaults.eos_token_ids)
        return cls(
            temperature=_first(request.temperature, defaults.temperature),
            top_p=_first(request.top_p, defaults.top_p),
            top_k=max(_first(request.top_k, defaults.top_k), 0),
            min_p=_first(request.min_p, 0.0),
            seed=_first(request.seed, secrets.randbits(63)),
            max_tokens=max_tokens,
            min_tokens=request.min_tokens,
            end_token_ids=frozenset(ends),
            stops=request.stops,
        )


def _first(asked: T | None, default: T) -> T:
    return default if asked is None else asked
