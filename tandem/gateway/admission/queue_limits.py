"""How many requests wait for room, for how long, and how many one instance is given at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tandem.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class QueueLimits:
    """Each an option of the command.

    Raises:
        UsageError: A number that cannot be.
    """

    queue: int = 1024
    """Requests that may wait for room; 0 refuses what there is no room for: 429."""
    queue_seconds: float = 60.0
    """Longest wait for room: 429."""
    max_in_flight: int | None = None
    """Most requests at a time for one decode instance, whatever room it has. Default: any number."""

    def __post_init__(self) -> None:
        if self.queue < 0:
            raise UsageError(f"queue: {self.queue} requests cannot wait; choose 0 or more with --queue")
        if not 0 < self.queue_seconds < math.inf:
            told = f"{self.queue_seconds:g} s is no time to wait"
            raise UsageError(f"queue_seconds: {told}; choose more than 0 with --queue-seconds, or --queue 0")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise UsageError(
                f"max_in_flight: with {self.max_in_flight} nobody is served; choose at least 1 with --max-in-flight"
            )
