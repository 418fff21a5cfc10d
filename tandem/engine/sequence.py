"""One choice of one request on its way through an instance: a state machine with its tokens, blocks and text.

    WAITING ──▶ PREFILLING ────▶ DECODING ──▶ FINISHED
     ▲  │                         ▲   │
     │  └─────▶ TRANSFERRING ─────┘   └─────▶ FAILED | ABORTED (from every state that is not an end)
     └── preempted: from PREFILLING and DECODING

A prefill instance finishes after the first token; `both` skips TRANSFERRING. A preempted sequence keeps its tokens and
computes their keys and values again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from tandem.engine.handoff import Sampled
from tandem.engine.sampling import SamplingParams
from tandem.kv.prefix import BlockKeys
from tandem.protocol.answers import FinishReason
from tandem.protocol.kv import KVTransferParams
from tandem.protocol.logprobs import TokenLogprobs
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
    Status.PREFILLING: {Status.DECODING, Status.WAITING} | ENDS,
    Status.TRANSFERRING: {Status.DECODING, Status.WAITING} | ENDS,
    Status.DECODING: {Status.WAITING} | ENDS,
}


@dataclass(frozen=True)
class Update:
    """What one step added to one choice of an answer."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    """The tokens the step added."""
    reason: FinishReason | None = None
    """Set on a choice's last update."""
    error: str | None = None
    """Why the request failed, with the reason `error`."""
    status: int = 500
    """HTTP status of that failure."""
    ticket: KVTransferParams | None = None
    """On a prefill instance: what fetches the blocks. It comes first, before they are computed."""
    choice: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each token, where they were asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What is asked of the engine."""

    id: str
    prompt: list[int]
    sampling: SamplingParams
    choices: tuple[int, ...] = (0,)
    """Numbers of the answers wanted; each draws its own random numbers."""
    output: tuple[int, ...] = ()
    """Tokens of the answer that another instance has generated already; only with one choice."""
    sent: int = 0
    """Characters of those tokens' text that the client has."""
    start: Start = Start.CONTINUES
    """An answer goes on with the prompt's text; in a chat it is a text of its own."""
    keep_for_remote: bool = False
    """Only prefill, then lease the blocks to another instance."""
    fetch_from: KVTransferParams | None = None
    """Do not prefill: pull the blocks with this ticket."""
    reservation: str | None = None
    """Name of blocks that were reserved for this request."""
    priority: int = 0
    """Lower ones go first."""
    deadline: float = math.inf
    """When it fails if it has not ended, on the engine's clock in seconds."""
    salt: str | None = None
    """Blocks are shared only with requests of the same salt."""

    @property
    def cache_tokens(self) -> int:
        """Most tokens one choice will hold in the cache: the last output token is never fed back."""
        output = len(self.output) if self.keep_for_remote else self.sampling.max_tokens - 1
        return len(self.prompt) + output


@dataclass(eq=False)
class Sequence:
    """One choice's state. Owned by the engine; changed under its lock."""

    request: Request
    tokenizer: Decodes
    keys: BlockKeys
    """Of its own blocks, chained to what the request's root is."""
    arrival: int
    """Sequences that came first go first, at equal priority."""
    choice: int
    status: Status = Status.WAITING
    token_ids: list[int] = field(init=False)
    """Prompt and output."""
    blocks: list[int] = field(default_factory=list)
    cached: int = 0
    """Tokens whose keys and values are in the blocks."""
    published: int = 0
    """Leading blocks that were offered to others."""
    has_reservation: bool = False
    """Blocks were kept for it, so it goes before those without."""
    reserved: list[int] = field(default_factory=list)
    """Those blocks, until it is admitted."""
    fetches: bool = False
    """Its blocks are to be pulled from another instance."""
    sampling: SamplingParams = field(init=False)
    """The request's own, or with the seed of the instance that sampled the first token."""
    over: FinishReason | None = field(init=False)
    """Why the answer had ended before it came here."""

    def __post_init__(self) -> None:
        """Start from the prompt and from what was generated elsewhere."""
        request = self.request
        self.token_ids = [*request.prompt, *request.output]
        self.sampling = request.sampling
        self.fetches = request.fetch_from is not None
        self._detokenizer = Detokenizer(self.tokenizer, request.start)
        self._matcher = StopMatcher(request.sampling.stops)
        self._replay(request)

    @property
    def output_count(self) -> int:
        """Tokens generated so far, elsewhere too."""
        return len(self.token_ids) - len(self.request.prompt)

    @property
    def fork(self) -> bool:
        """Whether the next token is the first of several choices."""
        return len(self.request.choices) > 1 and self.output_count == 0

    @property
    def order(self) -> tuple[bool, int, int]:
        """Who goes first: those with reserved blocks, then by priority, then by arrival."""
        return not self.has_reservation, self.request.priority, self.arrival

    @property
    def pinned(self) -> bool:
        """Whether another instance's request goes on with its blocks, or another instance writes them."""
        return self.fetches or self.request.keep_for_remote

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDS

    def move(self, status: Status) -> None:
        """Go to another state; only the arrows above exist."""
        assert status in NEXT[self.status], f"{self.request.id}: no way from {self.status.name} to {status.name}"
        self.status = status

    def append(self, sampled: Sampled) -> Update:
        """Take one sampled token: the text it adds, and the reason if it ends the answer."""
        self.token_ids.append(sampled.token)
        text, reason = self._take(sampled.token, self.output_count)
        logprobs = () if sampled.logprobs is None else (sampled.logprobs,)
        return Update(self._unsent(text), (sampled.token,), reason, choice=self.choice, logprobs=logprobs)

    def close(self) -> Update:
        """The update of an answer that was over when it came here (`over`): what the client has missed of it."""
        return Update(self._unsent(""), reason=self.over, choice=self.choice)

    def _replay(self, request: Request) -> None:
        """Read what was generated elsewhere, so that text, stops and limits go on as if it had been here."""
        text, self.over = "", None
        for place, token in enumerate(request.output, start=1):
            piece, self.over = self._take(token, place)
            text += piece
            if self.over is not None:
                break
        self._owed, self._ahead = text[request.sent :], max(request.sent - len(text), 0)

    def _take(self, token: int, place: int) -> tuple[str, FinishReason | None]:
        """The text that the answer's token number `place`, counted from 1, lets out, and why it ends the answer."""
        sampling = self.sampling
        past_minimum = place >= sampling.min_tokens
        if token in sampling.end_token_ids and past_minimum:
            return self._rest(), "stop"
        text = self._detokenizer.push(token)
        if past_minimum:
            text = self._matcher.push(text)
        if self._matcher.stopped:
            return text, "stop"
        if place >= sampling.max_tokens:
            return text + self._rest(), "length"
        return text, None

    def _unsent(self, text: str) -> str:
        """With what the client has missed, and without what it has had already."""
        text, self._owed = self._owed + text, ""
        had = min(self._ahead, len(text))
        self._ahead -= had
        return text[had:]

    def _rest(self) -> str:
        """Text held back so far: half characters, and what might have begun a stop string."""
        text = self._matcher.push(self._detokenizer.flush())
        return text + self._matcher.flush()
