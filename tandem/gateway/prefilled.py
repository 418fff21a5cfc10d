"""What is known of a prefill that the decode leg and its client's usage go back to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Prefilled:
    """Of one prefill leg; times are seconds of the monotonic clock."""

    sent: float = field(default_factory=time.monotonic)
    ended: float | None = None
    """When its answer was read to its end."""
