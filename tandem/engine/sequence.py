"""One choice of one request on its way through an instance: a state machine with its tokens, blocks and text.

    WAITING ──▶ PREFILLING ────▶ DECODING ──▶ FINISHED
     ▲  │                         ▲   │
     │  └─────▶ TRANSFERRING ─────┘   └─────▶ FAILED | ABORTED (from every state that is not an end)
     └── preempted: from PREFILLING and DECODING

A prefill instance finishes after the first token; `both` skips TRANSFERRING. A preempted sequence keeps its tokens and
computes their keys and values again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from tandem.engine.request import Request
from tandem.engine.sampled import Sampled
from tandem.engine.sampling import SamplingParams
from tandem.engine.update import Update
from tandem.kv.lease import Lease
from tandem.kv.prefix import BlockKeys
from tandem.protocol.answers import FinishReason
from tandem.text.detokenizer import Decodes, Detokenizer
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
    reused: int | None = None
    """Tokens of the prompt whose keys and values were known when it was first admitted: here, or where they were pulled
    from."""
    pulled_at: float | None = None
    """When what another instance computed was here, on the engine's clock."""
    published: int = 0
    """Leading blocks that were offered to others."""
    reservation: Lease | None = None
    """Of blocks that were kept for it; it ends when the sequence is admitted, and by itself."""
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
        return self.reservation is None, self.request.priority, self.arrival

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
        return Update(
            self._unsent(text),
            (sampled.token,),
            reason,
            choice=self.choice,
            logprobs=logprobs,
            reused=self.reused or 0,
            pulled_at=self.pulled_at,
        )

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
