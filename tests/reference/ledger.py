"""A model without arithmetic, whose next token is right only if every block it reads holds what it should.

For every token it writes into its slot a hash of all tokens up to it, and it takes the hash of those before from the
slot before; so a block that was given away, shared wrongly, torn or not transferred changes all later tokens. What it
should say is a function of the tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from tandem.engine.step import Step

VOCABULARY = 11


def chained(before: bytes, token: int) -> bytes:
    return blake2b(before + token.to_bytes(4, "big"), digest_size=8).digest()


def state_of(tokens: Sequence[int]) -> bytes:
    state = b""
    for token in tokens:
        state = chained(state, token)
    return state


def logits_of(state: bytes) -> Tensor:
    """[V], far apart, so that sampling is decided by more than rounding."""
    generator = torch.Generator().manual_seed(int.from_bytes(state, "big") >> 1)
    return torch.randn(VOCABULARY, generator=generator) * 3


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    """The answer a model alone would give."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(state_of(tokens)).argmax()))
    return tokens[len(prompt) :]


class LedgerModel:
    """Satisfies the runner's `Model`; `slots` is its cache: (block, place) -> hash of the tokens up to there."""

    vocab_size = VOCABULARY

    def __init__(self, block_size: int) -> None:
        self.slots: dict[tuple[int, int], bytes] = {}
        self._size = block_size

    def logits(self, step: Step) -> Tensor | None:
        states, tokens = [], iter(step.tokens)
        written = set()
        for chunk in step.chunks:
            for place in range(chunk.start, chunk.stop):
                before = self.slots[self._slot(chunk.blocks, place - 1)] if place else b""
                slot = self._slot(chunk.blocks, place)
                assert slot not in written, f"two sequences write to {slot} in one step"
                written.add(slot)
                self.slots[slot] = chained(before, next(tokens))
                states.append(self.slots[slot])
        return torch.stack([logits_of(states[row]) for row in step.rows]) if step.rows else None

    def watch(self, on_death) -> None:
        """Nothing dies here."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def copy(self, source: LedgerModel, blocks: Sequence[int], into: Sequence[int]) -> None:
        """What a transport does."""
        for theirs, ours in zip(blocks, into, strict=True):
            for place in range(self._size):
                if (theirs, place) in source.slots:
                    self.slots[ours, place] = source.slots[theirs, place]

    def _slot(self, blocks: Sequence[int], place: int) -> tuple[int, int]:
        return blocks[place // self._size], place % self._size
