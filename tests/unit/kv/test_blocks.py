"""The block pool under random holders: nothing is lost, nothing is given twice."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tandem.kv.blocks import BlockPool

COUNT = 13


class Holders(RuleBasedStateMachine):
    """Takes, shares and releases, and compares with a plain count of holders."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(COUNT, block_size=4)
        self.holders = [0] * COUNT

    @rule(target=held, share=st.floats(0, 1))
    def allocate(self, share: float) -> list[int]:
        taken = self.pool.allocate(int(share * self.pool.free))
        for block in taken:
            assert self.holders[block] == 0
            self.holders[block] += 1
        return taken

    @rule(target=held, blocks=held)
    def share(self, blocks: list[int]) -> list[int]:
        if any(self.holders[block] == 0 for block in blocks):
            with pytest.raises(AssertionError, match="free"):
                self.pool.share([block for block in blocks if self.holders[block] == 0])
            return []
        self.pool.share(blocks)
        for block in blocks:
            self.holders[block] += 1
        return blocks

    @rule(blocks=consumes(held))
    def release(self, blocks: list[int]) -> None:
        self.pool.release(blocks)
        for block in blocks:
            self.holders[block] -= 1

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.pool.free == self.holders.count(0)


TestHolders = Holders.TestCase


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(4, block_size=4)
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_a_free_block_cannot_be_released() -> None:
    pool = BlockPool(2, block_size=1)
    with pytest.raises(AssertionError, match="free already"):
        pool.release([0])
