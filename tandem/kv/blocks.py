"""Which KV blocks are free, who holds the others, and which contents are still there: no tensors.

              ┌───────────────── evicted, the longest unused first ─────────────────┐
              ▼                                                                     │
    free ──allocate──▶ held ──publish──▶ held, known ──release──▶ idle, known ──────┘
              ▲          │                    ▲                        │
              └─release──┘                    └────────share───────────┘

A block is published under a key once it is full and computed (`prefix.py`); whoever needs the same content shares it.
"""

from __future__ import annotations

from collections.abc import Sequence


class BlockPool:
    """The blocks of one cache.

    Not thread-safe: used under the engine's lock.

    Args:
        count: Number of blocks; their ids are 0 to count-1.
        block_size: Tokens in a block.
    """

    def __init__(self, count: int, block_size: int) -> None:
        self.count = count
        self.block_size = block_size
        # The one that came back last goes first: it is still in the processor's cache, and memory never used stays so.
        self._unused = list(reversed(range(count)))
        self._idle: dict[int, None] = {}  # known blocks that nobody holds, the longest unused first
        self._holders = [0] * count
        self._keys: dict[int, bytes] = {}
        self._known: dict[bytes, int] = {}
        self.evictions = 0
        """Known blocks that were given away, since the start."""

    @property
    def free(self) -> int:
        """Number of blocks nobody holds; some of them may still be known."""
        return len(self._unused) + len(self._idle)

    @property
    def known(self) -> int:
        """Number of blocks whose content can be shared."""
        return len(self._keys)

    def holders(self, block: int) -> int:
        """How many hold a block."""
        return self._holders[block]

    def is_known(self, block: int) -> bool:
        """Whether a block is published."""
        return block in self._keys

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that `tokens` tokens fill, the last one perhaps in part."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks; the caller has checked that there are enough."""
        assert count <= self.free, f"{count} blocks wanted, {self.free} free"
        taken = [self._unused.pop() if self._unused else self._evict() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Add a holder to blocks that are held or known."""
        for block in blocks:
            assert self._holders[block] > 0 or block in self._idle, f"block {block} is free and cannot be shared"
            self._idle.pop(block, None)
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take one holder away from each block; of a sequence's blocks the last ones will be evicted first."""
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} is free already"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._let_go(block)

    def publish(self, block: int, key: bytes) -> None:
        """A held block's content is final and has this key; of two blocks with one key the first stays known."""
        assert self._holders[block] > 0, f"block {block} is free and has no content"
        if key not in self._known and block not in self._keys:
            self._known[key] = block
            self._keys[block] = key

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """The known blocks of the longest beginning of `keys`; take them with `share`."""
        found = []
        for key in keys:
            if (block := self._known.get(key)) is None:
                break
            found.append(block)
        return found

    def _let_go(self, block: int) -> None:
        if block in self._keys:
            self._idle[block] = None
        else:
            self._unused.append(block)

    def _evict(self) -> int:
        block = next(iter(self._idle))
        del self._idle[block]
        del self._known[self._keys.pop(block)]
        self.evictions += 1
        return block
