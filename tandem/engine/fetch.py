"""One pull of blocks from another instance, on the side that pulls."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.engine.handoff import HandOff
from tandem.engine.sequence import Sequence


@dataclass(eq=False)
class Fetch:
    """What is to be pulled, and where it goes."""

    sequence: Sequence
    """For whom; it may end before the pull does."""
    first: int
    """The first block that is not here yet."""
    blocks: list[int]
    """Where the ticket's blocks go, from `first` on. The fetch holds them in the pool until it has ended."""
    content: bytes
    """Key of the tokens whose keys and values are wanted."""
    arrived_at: float | None = None
    """When they were here, on the engine's clock."""

    def mismatch(self, state: HandOff, vocab_size: int) -> str | None:
        """Why this request cannot go on from what was handed over; None if it can."""
        request = self.sequence.request
        if state.prompt != len(request.prompt):
            return f"the KV ticket is for a prompt of {state.prompt} tokens, this one has {len(request.prompt)}"
        if len(state.first) != len(request.choices):
            asked = f"the request asks for n={len(request.choices)}; send both instances the same request"
            return f"the KV ticket is for n={len(state.first)}, {asked}"
        if any(sampled.token >= vocab_size for sampled in state.first):
            return f"the KV ticket's first tokens are outside 0..{vocab_size - 1}; do both instances serve one model?"
        return None
