"""Is the next value of a series as the ones before let expect, a spike, or no number?

What others do (read in their sources): OLMo-core and levanter skip a step whose loss or gradient norm lies 6 standard
deviations above the mean of the last 128; metaseq compared with an exponential mean; MindFormers with a fixed norm.
A mean and its deviation are moved by the very spikes they should find, and widened by the descent at the start. So
here they are medians around a line; see trend.py.

Measured on the curves of tests/synthetic_curves.py, 5,000 values of each, and on missed spikes of one nat (losses) or
ten times the value (norms), 215 of each, put in one at a time (tests/unit/curves/test_judge.py holds the rates):

    descent, cliff, plateau, lasting noise   no false alarm;    5 % missed, those on the steep stretch
    norms that fall, or rise and fall        no false alarm;    none missed
    norms with Student's t (3) in the log    5 false alarms;    2 missed
    nearly memorised, log-normal             7 false alarms;    none missed
    small batches, gamma with deviation 0.6  4 false alarms;    99 % missed: one nat is no event there

The four training runs of the quickstart that were at hand, 2,050 steps, have no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tandem.curves.trend import WINDOW, trend

LEAST_HISTORY = 16
"""With fewer values before it, nothing finite is a spike."""
SMALLEST = 1e-12
"""Logarithms are taken of no less."""


class Kind(StrEnum):
    """What a value is."""

    FINE = "fine"
    SPIKE = "spike"
    NOT_A_NUMBER = "not a number"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When a value is too high."""

    sigmas: float
    """So many spreads above what was expected,"""
    least: float
    """and at least this far, so that a quiet series may still twitch."""
    logarithmic: bool = False
    """Whether both are meant of the logarithm: for what is positive and varies by factors."""


LOSS = Rule(sigmas=6.0, least=0.2)
"""For a loss in nats per token."""
GRADIENT_NORM = Rule(sigmas=6.0, least=math.log(4), logarithmic=True)
"""For the norm of a gradient: at least four times the expected one."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a value is, and why."""

    kind: Kind
    expected: float | None = None
    """What the history let expect; None where it is too short."""
    limit: float | None = None
    """Higher is a spike."""


def judge(history: Sequence[float], value: float, rule: Rule = LOSS) -> Verdict:
    """Judge a value by those before it; what is no number among them does not count.

    A function of its arguments alone: ranks that hold the same numbers come to the same verdict. Only what is too high
    is a spike. A series that moves up for good is one for about `WINDOW / 8` values, then it is the new normal.
    """
    if not math.isfinite(value):
        return Verdict(kind=Kind.NOT_A_NUMBER)
    before = np.array(history[-WINDOW:], dtype=np.float64)
    before = before[np.isfinite(before)]
    if len(before) < LEAST_HISTORY:
        return Verdict(kind=Kind.FINE)
    line = trend(np.log(np.maximum(before, SMALLEST)) if rule.logarithmic else before)
    expected, limit = line.next, line.next + max(rule.sigmas * line.spread, rule.least)
    if rule.logarithmic:
        expected, limit = math.exp(expected), math.exp(min(limit, 700.0))
    return Verdict(kind=Kind.SPIKE if value > limit else Kind.FINE, expected=expected, limit=limit)
