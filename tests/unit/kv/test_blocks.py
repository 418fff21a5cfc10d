"""The block pool: nothing is lost, nothing is given twice, and what is known is forgotten in the right order."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tandem.kv.blocks import BlockPool

COUNT = 9
KEYS = [bytes([number]) for number in range(6)]


class Life(RuleBasedStateMachine):
    """Takes, publishes, shares and releases, and compares with plain lists of what should be where."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(COUNT, block_size=4)
        self.holders = [0] * COUNT
        self.keys: dict[int, bytes] = {}
        self.idle: list[int] = []  # known and held by nobody, the longest unused first
        self.evictions = 0

    @rule(target=held, share=st.floats(0, 1))
    def allocate(self, share: float) -> list[int]:
        count = int(share * self.pool.free)
        forgotten = self.idle[: max(count - (self.pool.free - len(self.idle)), 0)]
        taken = self.pool.allocate(count)
        assert len(set(taken)) == count
        assert all(self.holders[block] == 0 for block in taken)
        assert {block for block in taken if block in self.idle} == set(forgotten)
        for block in taken:
            self.holders[block] = 1
        for block in forgotten:
            self.idle.remove(block)
            del self.keys[block]
            self.evictions += 1
        return taken

    @rule(blocks=held, data=st.data())
    def publish(self, blocks: list[int], data: st.DataObject) -> None:
        for block in blocks:
            if self.holders[block]:
                key = data.draw(st.sampled_from(KEYS))
                self.pool.publish(block, key)
                if block not in self.keys and key not in self.keys.values():
                    self.keys[block] = key

    @rule(target=held, keys=st.permutations(KEYS))
    def share_what_is_known(self, keys: list[bytes]) -> list[int]:
        found = self.pool.match(keys)
        known = {key: block for block, key in self.keys.items()}
        count = next((place for place, key in enumerate(keys) if key not in known), len(keys))
        assert found == [known[key] for key in keys[:count]]
        self._shared(found)
        return found

    @rule(target=held, blocks=held)
    def share(self, blocks: list[int]) -> list[int]:
        for block in blocks:
            if not self.holders[block] and block not in self.idle:
                with pytest.raises(AssertionError, match="free"):
                    self.pool.share([block])
                return []
        self._shared(blocks)
        return blocks

    def _shared(self, blocks: list[int]) -> None:
        self.pool.share(blocks)
        for block in blocks:
            self.holders[block] += 1
            if block in self.idle:
                self.idle.remove(block)

    @rule(blocks=consumes(held))
    def release(self, blocks: list[int]) -> None:
        blocks = [block for block in blocks if self.holders[block]]
        self.pool.release(blocks)
        for block in reversed(blocks):
            self.holders[block] -= 1
            if not self.holders[block] and block in self.keys:
                self.idle.append(block)

    @invariant()
    def everything_is_counted(self) -> None:
        pool = self.pool
        assert [pool.holders(block) for block in range(COUNT)] == self.holders
        assert pool.free == self.holders.count(0)
        assert {block for block in range(COUNT) if pool.is_known(block)} == set(self.keys)
        assert (pool.known, pool.evictions) == (len(self.keys), self.evictions)


TestLife = Life.TestCase


def published(pool: BlockPool, *keys: bytes) -> list[int]:
    """New blocks with these keys, held once."""
    blocks = pool.allocate(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        pool.publish(block, key)
    return blocks


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(4, block_size=4)
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_later_blocks_of_a_sequence_are_evicted_before_its_earlier_ones() -> None:
    pool = BlockPool(3, block_size=1)
    pool.release(published(pool, b"a", b"b", b"c"))
    pool.allocate(1)
    assert len(pool.match([b"a", b"b", b"c"])) == 2
    pool.allocate(1)
    assert len(pool.match([b"a", b"b", b"c"])) == 1
    assert pool.evictions == 2


def test_the_sequence_that_was_not_used_for_longest_is_evicted_first() -> None:
    pool = BlockPool(2, block_size=1)
    first, second = published(pool, b"first"), published(pool, b"second")
    pool.release(first)
    pool.release(second)
    pool.share(first)
    pool.release(first)
    assert pool.allocate(1) == second
    assert pool.match([b"first"]) == first
    assert pool.match([b"second"]) == []


def test_blocks_without_content_are_taken_before_known_ones() -> None:
    pool = BlockPool(3, block_size=1)
    pool.release(published(pool, b"a"))
    pool.allocate(2)
    assert (pool.known, pool.evictions, pool.free) == (1, 0, 1)


def test_a_match_ends_at_the_first_block_that_is_not_known() -> None:
    pool = BlockPool(4, block_size=1)
    a, _, c = published(pool, b"a", b"b", b"c")
    assert pool.match([b"a", b"x", b"c"]) == [a]
    assert pool.match([b"c", b"a"]) == [c, a]
    assert pool.match([b"x", b"a"]) == []


def test_of_two_blocks_with_one_key_the_first_stays_known() -> None:
    pool = BlockPool(2, block_size=1)
    first, second = published(pool, b"a", b"a")
    assert pool.match([b"a"]) == [first]
    pool.release([second])
    assert pool.match([b"a"]) == [first]
    assert (pool.known, pool.is_known(second)) == (1, False)


def test_a_block_keeps_the_first_key_it_was_published_under() -> None:
    pool = BlockPool(1, block_size=1)
    (block,) = published(pool, b"a")
    pool.publish(block, b"b")
    assert (pool.match([b"a"]), pool.match([b"b"]), pool.known) == ([block], [], 1)


def test_an_idle_block_that_is_shared_again_is_not_given_away() -> None:
    pool = BlockPool(2, block_size=1)
    (block,) = published(pool, b"a")
    pool.release([block])
    assert pool.free == 2
    pool.share(pool.match([b"a"]))
    assert pool.free == 1
    assert pool.allocate(1) != [block]
    with pytest.raises(AssertionError, match="1 blocks wanted, 0 free"):
        pool.allocate(1)


def test_a_shared_block_is_free_only_after_its_last_holder() -> None:
    pool = BlockPool(1, block_size=1)
    (block,) = pool.allocate(1)
    pool.share([block])
    pool.release([block])
    assert (pool.free, pool.holders(block)) == (0, 1)
    pool.release([block])
    assert pool.free == 1


def test_what_nobody_holds_can_be_neither_released_nor_published_nor_shared() -> None:
    pool = BlockPool(2, block_size=1)
    with pytest.raises(AssertionError, match="free already"):
        pool.release([0])
    with pytest.raises(AssertionError, match="has no content"):
        pool.publish(0, b"a")
    with pytest.raises(AssertionError, match="cannot be shared"):
        pool.share([0])
