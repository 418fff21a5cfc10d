"""Leases: blocks kept under a name for a limited time, for whoever shows the name.

Two kinds: a ticket's, over what a prefill computes and another instance will pull; and a reservation's, over free
blocks for a request that is still to come.

    ticket:       computing ──▶ open ──received / release / expire──▶ gone, blocks returned
                      └──the prefill ended otherwise──▶ gone
    reservation:  open ──admitted / release / expire──▶ gone, blocks returned

Whoever reads a lease's blocks holds them for that time in the pool, so a lease may end at any moment.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar


@dataclass(eq=False)
class Lease:
    """Blocks kept under one name."""

    blocks: list[int] = field(default_factory=list)
    """What the lease holds and gives back."""
    expires: float = math.inf
    """On the clock of `LeaseBook`, in seconds."""
    name: str = field(default_factory=lambda: secrets.token_hex(16))


@dataclass(eq=False)
class Ticket(Lease):
    """A prefill's lease; while it is computed, its sequence holds the blocks and the lease none."""

    content: bytes = b""
    """Key of the tokens whose keys and values the blocks hold (`prefix.py`)."""
    count: int = 0
    """Blocks in all."""
    state: bytes | None = None
    """What travels besides blocks, once the prefill has finished."""


L = TypeVar("L", bound=Lease)


class LeaseBook(Generic[L]):
    """All leases of one kind.

    Not thread-safe: used under the engine's lock.

    Args:
        duration: Life of a lease, in seconds.
        give_back: Called with the blocks of a lease that ends.
        clock: Seconds, monotonic; replaced in tests.
    """

    def __init__(
        self, duration: float, give_back: Callable[[Sequence[int]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.duration = duration
        self._give_back = give_back
        self._clock = clock
        self._leases: dict[str, L] = {}
        self.expired = 0
        """Leases that nobody used in time, since the start."""

    def __len__(self) -> int:
        """Number of leases."""
        return len(self._leases)

    def __iter__(self) -> Iterator[L]:
        """All leases."""
        return iter(self._leases.values())

    def add(self, lease: L) -> None:
        """Keep a lease; without `begin` it does not expire."""
        self._leases[lease.name] = lease

    def begin(self, lease: L) -> None:
        """Let a lease's time run from now."""
        lease.expires = self._clock() + self.duration

    def find(self, name: str) -> L | None:
        """The lease of that name, if it has not ended; one whose time is over ends here at the latest."""
        lease = self._leases.get(name)
        if lease is not None and lease.expires <= self._clock():
            self._drop(lease)
            self.expired += 1
            return None
        return lease

    def renew(self, names: Sequence[str]) -> None:
        """Begin these leases anew, as far as they are there and their time runs."""
        for name in names:
            lease = self.find(name)
            if lease is not None and lease.expires < math.inf:
                self.begin(lease)

    def end(self, name: str) -> L | None:
        """End a lease and give its blocks back; None if there is none (any more)."""
        lease = self.find(name)
        if lease is not None:
            self._drop(lease)
        return lease

    def expire(self) -> None:
        """End every lease whose time is over."""
        for name in list(self._leases):
            self.find(name)

    def _drop(self, lease: L) -> None:
        del self._leases[lease.name]
        self._give_back(lease.blocks)
