"""Which KV blocks are free and who holds the others: a free list and reference counts, no tensors.

free ──allocate──▶ held once ──share──▶ held more often
  ▲                    │                     │
  └───────release──────┴──────release────────┘   (free again when the last holder releases)
"""

from __future__ import annotations

from collections import deque
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
        self._free = deque(range(count))
        self._holders = [0] * count

    @property
    def free(self) -> int:
        """Number of blocks nobody holds."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that `tokens` tokens fill, the last one perhaps in part."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks; the caller has checked that there are enough."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        taken = [self._free.popleft() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Add a holder to blocks that have one."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free and cannot be shared"
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Take one holder away from each block; a block without holders is free again."""
        for block in blocks:
            assert self._holders[block] > 0, f"block {block} is free already"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free.append(block)
