"""How long an instance may be silent."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tandem.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Each an option of the command.

    Raises:
        UsageError: A number that cannot be.
    """

    hedge_seconds: float = 0.25
    """An instance that prefills may be so late with its ticket before another one is asked beside it."""
    suspect_seconds: float = 1.0
    """An instance may be silent for so long before it is asked whether it lives."""
    times_usual: float = 2.0
    """Or either for so many times its longest silence of late, if that is more."""
    probe_seconds: float = 0.75
    """It has so long to answer that; after two misses what it has goes on elsewhere."""
    slow_seconds: float = 4.0
    """One that answers may be silent for so long before a request goes on elsewhere."""
    times_expected: float = 5.0
    """Or for so many times its longest silence of late, in proportion to what is asked for, if that is more."""
    unknown_seconds: float = 60.0
    """One of which nothing is known yet may be silent for so long, for each thousand tokens that it has to compute."""
    longest_silence: float = 600.0
    """Seconds after which a silent instance is given up, whatever it answers."""

    def hedge_s(self, expected_s: float) -> float:
        """How late a ticket may be, of an instance whose tickets took so long at most of late."""
        return max(self.hedge_seconds, self.times_usual * expected_s)

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < (value := getattr(self, field.name)) < math.inf:
                option = field.name.replace("_", "-")
                raise UsageError(f"{field.name}: {value:g} cannot be; choose a number over 0 with --{option}")
