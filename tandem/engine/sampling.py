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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    """How many of the most likely tokens are told beside the one drawn; None tells no log-probabilities at all."""
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    """An answer has at least this many tokens before an end token or a stop string can end it."""
    end_token_ids: frozenset[int] = frozenset()
    """Tokens that end the answer and are not shown."""
    stops: tuple[str, ...] = ()

    @property
    def penalised(self) -> bool:
        """Whether tokens that were there before count."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def cut(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @classmethod
    def from_request(cls, request: GenerationRequest, defaults: GenerationDefaults, max_tokens: int) -> SamplingParams:
        """Fill what the request leaves out; without a seed a random one is drawn, and handed over with the blocks.

        Raises:
            RequestError: The fields about log-probabilities contradict each other.
        """
        ends = set(request.stop_token_ids or ())
        if not request.ignore_eos:
            ends |= set(defaults.eos_token_ids)
        return cls(
            temperature=_first(request.temperature, defaults.temperature),
            top_p=_first(request.top_p, defaults.top_p),
            top_k=max(_first(request.top_k, defaults.top_k), 0),
            min_p=_first(request.min_p, defaults.min_p),
            presence_penalty=_first(request.presence_penalty, 0.0),
            frequency_penalty=_first(request.frequency_penalty, 0.0),
            repetition_penalty=_first(request.repetition_penalty, defaults.repetition_penalty),
            logprobs=request.logprob_count,
            seed=_first(request.seed, secrets.randbits(63)),
            max_tokens=max_tokens,
            min_tokens=request.min_tokens,
            end_token_ids=frozenset(ends),
            stops=request.stops,
        )


def _first(asked: T | None, default: T) -> T:
    return default if asked is None else asked
