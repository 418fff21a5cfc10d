"""What is asked of an engine, after an HTTP body has been checked and its prompt is tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tandem.engine.sampling import SamplingParams
from tandem.protocol.kv import KVTransferParams
from tandem.text.detokenizer import Start


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
    ticket_name: str | None = None
    """What that lease is called; None for a name of the instance's own."""
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
