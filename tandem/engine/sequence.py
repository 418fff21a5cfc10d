"""One request on its way through an instance: a state machine with its tokens, blocks and text.

    WAITING ──▶ PREFILLING ────▶ DECODING ──▶ FINISHED
       │                          ▲   │
       └──────▶ TRANSFERRING ─────┘   └─────▶ FAILED | ABORTED (from every state that is not an end)

A prefill instance finishes after the first token; `both` skips TRANSFERRING.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from tandem.engine.sampling import SamplingParams
from tandem.protocol.answers import FinishReason
from tandem.protocol.kv import KVTransferParams
from tandem.text.detokenizer import Decodes, Detokenizer, Start
from tandem.text.stop import StopMatcher


class Status(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    PREFILLING = auto()
    TRANSFERRING = auto()
    DECODING = auto()
    FINISHED = auto()
    FAILED = auto()
    ABORTED = auto()


ENDS: Final = frozenset({Status.FINISHED, Status.FAILED, Status.ABORTED})
NEXT: Final = {
    Status.WAITING: {Status.PREFILLING, Status.TRANSFERRING} | ENDS,
    Status.PREFILLING: {Status.DECODING} | ENDS,
    Status.TRANSFERRING: {Status.DECODING} | ENDS,
    Status.DECODING: ENDS,
}


@dataclass(frozen=True)
class Update:
    """What one step added to one answer."""

    text: str = ""
    tokens: int = 0
    """How many tokens the step added."""
    reason: FinishReason | None = None
    """Set on the last update."""
    error: str | None = None
    """Why the request failed, with the reason `error`."""
    ticket: KVTransferParams | None = None
    """On a prefill instance: what fetches the blocks."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of the engine."""

    id: str
    prompt: list[int]
    sampling: SamplingParams
    start: Start = Start.CONTINUES
    """An answer goes on with the prompt's text; in a chat it is a text of its own."""
    keep_for_remote: bool = False
    """Only prefill, then lease the blocks to another instance."""
    fetch_from: KVTransferParams | None = None
    """Do not prefill: pull the blocks with this ticket."""

    @property
    def cache_tokens(self) -> int:
        """Most tokens the request will hold in the cache: the last output token is never fed back."""
        return len(self.prompt) + (0 if self.keep_for_remote else self.sampling.max_tokens - 1)


@dataclass(eq=False)
class Sequence:
    """One request's state. Owned by the engine; changed under its lock."""

    request: Request
    tokenizer: Decodes
    status: Status = Status.WAITING
    token_ids: list[int] = field(init=False)
    """Prompt and output."""
    blocks: list[int] = field(default_factory=list)
    cached: int = 0
    """Tokens whose keys and values are in the blocks."""
    sampling: SamplingParams = field(init=False)
    """The request's own, or with the seed of the instance that sampled the first token."""

    def __post_init__(self) -> None:
        """Start from the prompt."""
        self.token_ids = list(self.request.prompt)
        self.sampling = self.request.sampling
        self._detokenizer = Detokenizer(self.tokenizer, self.request.start)
        self._matcher = StopMatcher(self.request.sampling.stops)

    @property
    def output_count(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.request.prompt)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDS

    def move(self, status: Status) -> None:
        """Go to another state; only the arrows above exist."""
        assert status in NEXT[self.status], f"{self.request.id}: no way from {self.status.name} to {status.name}"
        self.status = status

    def append(self, token: int) -> Update:
        """Take one sampled token: the text it adds, and the reason if it ends the answer."""
        sampling = self.sampling
        self.token_ids.append(token)
        past_minimum = self.output_count >= sampling.min_tokens
        if token in sampling.end_token_ids and past_minimum:
            return Update(self._rest(), 1, "stop")
        text = self._detokenizer.push(token)
        if past_minimum:
            text = self._matcher.push(text)
        if self._matcher.stopped:
            return Update(text, 1, "stop")
        if self.output_count >= sampling.max_tokens:
            return Update(text + self._rest(), 1, "length")
        return Update(text, 1)

    def _rest(self) -> str:
        """Text held back so far: half characters, and what might have begun a stop string."""
        text = self._matcher.push(self._detokenizer.flush())
        return text + self._matcher.flush()
