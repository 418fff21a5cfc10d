"""Keys of blocks: a block's key is a hash of everything its keys and values depend on.

    root ──tokens 0..S-1──▶ key of block 0 ──tokens S..2S-1──▶ key of block 1 ──▶ ...

The root stands for what all blocks of a sequence depend on. Two blocks with one key hold the same numbers, so a hit
needs no comparison; that is why the hash is a cryptographic one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

KEY_BYTES = 16


def root_key(*, adapter: str | None, rotation: int, dtype: str, salt: str | None) -> bytes:
    """The key that a sequence's first block is chained to.

    Args:
        adapter: Id of the adapter that changes keys and values; None without one.
        rotation: How far the prompt's length changes the rotary angles, as `catalogue.position.Rope.stretch` says.
        dtype: Of the cache.
        salt: A client's own: its blocks are shared only with requests of the same salt.
    """
    return blake2b(repr((adapter, rotation, dtype, salt)).encode(), digest_size=KEY_BYTES).digest()


def next_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a block with these tokens after the block with key `parent`."""
    return blake2b(parent + array("I", tokens).tobytes(), digest_size=KEY_BYTES).digest()


class BlockKeys:
    """The keys of one sequence's full blocks, computed once each.

    Args:
        root: From `root_key`.
        block_size: Tokens in a block.
    """

    def __init__(self, root: bytes, block_size: int) -> None:
        self._root = root
        self._size = block_size
        self._keys: list[bytes] = []

    def of(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """Keys of the first `count` blocks of `tokens`, which only ever grow."""
        for block in range(len(self._keys), count):
            parent = self._keys[-1] if self._keys else self._root
            self._keys.append(next_key(parent, tokens[block * self._size : (block + 1) * self._size]))
        return self._keys[:count]

    def content(self, tokens: Sequence[int], length: int) -> bytes:
        """The key of the first `length` tokens as a whole, the last block perhaps in part."""
        full = length // self._size
        keys = self.of(tokens, full)
        return next_key(keys[-1] if keys else self._root, tokens[full * self._size : length])
