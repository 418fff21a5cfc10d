"""Reservations of the native dialect: room that is kept for a request to come."""

from __future__ import annotations

import asyncio
import uuid

LIMIT = 2**20
"""Tokens that can be kept at a time."""


class Rooms:
    """All reservations of one instance.

    Args:
        lease_s: How long each lasts.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._held: dict[str, int] = {}
        self.expired = 0

    def __len__(self) -> int:
        return len(self._held)

    def reserve(self, tokens: int) -> str | None:
        """Keep room; None where there is none."""
        if sum(self._held.values()) + tokens > LIMIT:
            return None
        name = uuid.uuid4().hex
        self._held[name] = tokens
        asyncio.get_running_loop().call_later(self._lease_s, self._expire, name)
        return name

    def use(self, name: str | None) -> None:
        """A request comes that names it; what is unknown or has ended is no error."""
        self._held.pop(name or "", None)

    def release(self, name: str) -> bool:
        """Nobody will use it; False if it has ended already."""
        return self._held.pop(name, None) is not None

    def _expire(self, name: str) -> None:
        self.expired += self.release(name)
