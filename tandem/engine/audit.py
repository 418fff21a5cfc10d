"""Counts every block of an instance: who holds it, and whether that is all the pool knows of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from tandem.kv.blocks import BlockPool


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """One count, made between two steps' bookkeeping."""

    blocks: int
    """All of them."""
    free: int
    """Held by nobody; some of them still known."""
    known: int
    """Whose content can be shared."""
    sequences: int
    leases: int
    reservations: int
    pulls: int
    """Hand-offs under way, in both directions; what they hold is counted beside what sequences and leases hold."""
    leaked: int
    """Blocks with more holders than there are owners: nobody would ever give them back."""
    torn: int
    """Blocks with fewer holders than owners: they could be given away under somebody."""
    doubly_owned: int
    """Blocks that two owners may write to: held by two sequences, reservations or leases, and not known."""


def count_blocks(
    pool: BlockPool,
    *,
    sequences: Sequence[list[int]],
    leases: Sequence[list[int]],
    reservations: Sequence[list[int]],
    pulls: Sequence[list[int]],
) -> Audit:
    """Compare the pool's counts with the owners'; each owner is given as the blocks it holds."""
    writers = _count([*sequences, *leases, *reservations])
    owners = writers + _count(pulls)
    surplus = [pool.holders(block) - owners[block] for block in range(pool.count)]
    return Audit(
        blocks=pool.count,
        free=pool.free,
        known=pool.known,
        sequences=len(sequences),
        leases=len(leases),
        reservations=len(reservations),
        pulls=len(pulls),
        leaked=sum(count > 0 for count in surplus),
        torn=sum(count < 0 for count in surplus),
        doubly_owned=sum(count > 1 and not pool.is_known(block) for block, count in writers.items()),
    )


def _count(holders: Iterable[list[int]]) -> Counter[int]:
    return Counter(block for blocks in holders for block in blocks)
