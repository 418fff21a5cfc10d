"""Which part of a dimension each rank of a tensor-parallel group holds."""

from __future__ import annotations

from tandem.errors import UsageError


def part(size: int, rank: int, ranks: int, what: str) -> range:
    """The places of a dimension that one rank holds: equal parts.

    Raises:
        UsageError: `size` cannot be divided; the message names `what`.
    """
    if size % ranks:
        raise UsageError(f"--tensor-parallel-size {ranks}: {what} {size} cannot be divided by it")
    step = size // ranks
    return range(rank * step, (rank + 1) * step)


def kv_part(kv_heads: int, rank: int, ranks: int) -> range:
    """The key/value heads that one rank holds; with more ranks than heads several hold the same one.

    Raises:
        UsageError: Neither number divides the other.
    """
    if kv_heads >= ranks:
        return part(kv_heads, rank, ranks, "key/value heads")
    if ranks % kv_heads:
        raise UsageError(
            f"--tensor-parallel-size {ranks}: must divide the model's {kv_heads} key/value heads or be their multiple"
        )
    head = rank * kv_heads // ranks
    return range(head, head + 1)
