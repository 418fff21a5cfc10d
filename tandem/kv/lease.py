"""Leases: blocks that a finished prefill keeps for whoever shows the ticket, for a limited time.

    open ──claim──▶ claimed ──release──▶ gone, blocks returned
      │                │
      │                └──unclaim (the pull broke off)──▶ open
      └──expire / release──▶ gone, blocks returned

A ticket is good for one pull. A claimed lease does not expire under the reader; the transfer's own timeout bounds it.
Releasing a claimed lease is safe: the reader works on a copy taken when it claimed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tandem.errors import TransferError


@dataclass
class Lease:
    """Blocks kept under one ticket."""

    blocks: Sequence[int]
    tokens: int
    """Tokens whose keys and values the blocks hold."""
    token_ids: list[int]
    """The prompt and the first sampled token after it."""
    seed: int
    """That the first token was drawn with; the decode side goes on with it."""
    expires: float
    """On the clock of `LeaseBook`, in seconds."""
    ticket: str = field(default_factory=lambda: secrets.token_hex(16))
    claimed: bool = False


class LeaseBook:
    """All leases of one instance.

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
        self._leases: dict[str, Lease] = {}
        self.expired = 0
        """Leases that nobody fetched in time, since the start."""

    def __len__(self) -> int:
        """Number of leases that hold blocks."""
        return len(self._leases)

    def open(self, blocks: Sequence[int], token_ids: list[int], seed: int) -> Lease:
        """Keep `blocks`, which hold all of `token_ids` but the last, under a new ticket."""
        lease = Lease(blocks, len(token_ids) - 1, token_ids, seed, self._clock() + self.duration)
        self._leases[lease.ticket] = lease
        return lease

    def claim(self, ticket: str) -> Lease:
        """Take the lease for one pull.

        Raises:
            TransferError: The ticket is unknown (used up, expired or never given) or being pulled already.
        """
        lease = self._leases.get(ticket)
        if lease is None:
            raise TransferError("the KV ticket is used up, expired or unknown here; prefill the request again")
        if lease.claimed:
            raise TransferError("the KV ticket is being pulled by another decode instance; prefill the request again")
        lease.claimed = True
        return lease

    def unclaim(self, ticket: str) -> None:
        """The pull broke off: the blocks wait for another one, for a new full lease."""
        if lease := self._leases.get(ticket):
            lease.claimed = False
            lease.expires = self._clock() + self.duration

    def renew(self, tickets: Sequence[str]) -> None:
        """Begin these leases anew, as far as they are still there."""
        for ticket in tickets:
            if lease := self._leases.get(ticket):
                lease.expires = self._clock() + self.duration

    def release(self, ticket: str) -> bool:
        """End a lease and give its blocks back; False if there is none (any more)."""
        lease = self._leases.pop(ticket, None)
        if lease is not None:
            self._give_back(lease.blocks)
        return lease is not None

    def expire(self) -> None:
        """End every unclaimed lease whose time is over."""
        now = self._clock()
        for lease in [lease for lease in self._leases.values() if not lease.claimed and lease.expires <= now]:
            self.release(lease.ticket)
            self.expired += 1
