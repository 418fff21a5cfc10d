"""Where a series goes, and how far it strays from there; a minority of wild values changes neither by much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 64
"""Values of late that count. The trend bends within more; fewer say too little about the spread."""
GAUSSIAN = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A series of late."""

    next: float
    """What comes next, if nothing happens; rather too high than too low."""
    slope: float
    """Change from one value to the next."""
    spread: float
    """Standard deviation around the line, as it would be if the noise were normal."""


def trend(values: Sequence[float] | NDArray[np.float64]) -> Trend:
    """The line through the last `WINDOW` values, by medians; there must be at least four, all finite.

    The line goes through the medians of both halves. A descent that becomes flatter ends above its line, so what comes
    next is not expected below the median of the last quarter; that also lets a series that has moved for good, as when
    the data change, become the expected one after half a quarter.
    """
    y = np.asarray(values, dtype=np.float64)[-WINDOW:]
    half, quarter = len(y) // 2, len(y) // 4
    first, second = float(np.median(y[:half])), float(np.median(y[-half:]))
    slope = (second - first) / (len(y) - half)
    # The middle of the last half lies (half - 1) / 2 before the last value.
    line = second + slope * (np.arange(len(y)) - (len(y) - 1) + (half - 1) / 2)
    spread = GAUSSIAN * float(np.median(np.abs(y - line)))
    return Trend(next=max(float(line[-1]) + slope, float(np.median(y[-quarter:]))), slope=slope, spread=spread)
