"""How often `judge` is wrong, counted on curves as training draws them; the docstring of judge.py says so."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from synthetic_curves import LOSSES, NORMS, STEPS, Curve

from tandem.curves.judge import GRADIENT_NORM, LEAST_HISTORY, LOSS, Kind, Rule, judge
from tandem.curves.trend import WINDOW, trend

HEAVY = {"small_batches", "memorised", "heavy_norms"}
SPIKES = {"small_batches": 6.0}
"""Nats that a spike adds, where one is not enough to stand out of the noise: ten deviations."""
CURVES = [(name, curve, LOSS) for name, curve in LOSSES.items()] + [
    (name, curve, GRADIENT_NORM) for name, curve in NORMS.items()
]


def kind(curve: Curve, index: int, rule: Rule, value: float | None = None) -> Kind:
    return judge(curve[max(0, index - WINDOW) : index].tolist(), curve[index] if value is None else value, rule).kind


@pytest.mark.parametrize(("name", "curve", "rule"), CURVES, ids=[name for name, _, _ in CURVES])
def test_false_alarms(name: str, curve: Callable[[int], Curve], rule: Rule) -> None:
    alarms = sum(kind(curve(seed), index, rule) is Kind.SPIKE for seed in (10, 11) for index in range(STEPS))
    assert alarms <= (2 * STEPS // 400 if name in HEAVY else 0)


@pytest.mark.parametrize(("name", "curve", "rule"), CURVES, ids=[name for name, _, _ in CURVES])
def test_spikes_are_found(name: str, curve: Callable[[int], Curve], rule: Rule) -> None:
    missed = tried = 0
    for seed in range(10, 13):
        values = curve(seed)
        for index in range(2 * LEAST_HISTORY, STEPS, 31):
            wild = values[index] * 10 if rule.logarithmic else values[index] + SPIKES.get(name, 1.0)
            missed += kind(values, index, rule, wild) is not Kind.SPIKE
            tried += 1
    assert missed <= tried * 0.08


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("history", [[], [1.0] * WINDOW])
def test_no_number_is_always_told(value: float, history: list[float]) -> None:
    assert judge(history, value).kind is Kind.NOT_A_NUMBER


def test_of_too_few_values_none_is_a_spike() -> None:
    assert judge([1.0] * (LEAST_HISTORY - 1), 100.0).kind is Kind.FINE
    assert judge([1.0] * LEAST_HISTORY, 100.0).kind is Kind.SPIKE
    assert judge([1.0] * (LEAST_HISTORY - 1) + [math.nan], 100.0).kind is Kind.FINE


def test_a_spike_that_stays_in_the_history_hides_no_other() -> None:
    quiet = np.random.default_rng(0).normal(2.0, 0.05, WINDOW)
    wild = quiet.copy()
    wild[[10, 30, 50, 60]] += 5.0
    calm, after = judge(quiet.tolist(), 4.0), judge(wild.tolist(), 4.0)
    assert calm.kind is after.kind is Kind.SPIKE
    assert after.expected == pytest.approx(calm.expected, abs=0.05)


def test_a_series_that_moves_up_for_good_is_soon_normal() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.03, 2 * WINDOW)
    values[WINDOW:] += 1.5
    wild = [index for index in range(WINDOW, 2 * WINDOW) if kind(values, index, LOSS) is Kind.SPIKE]
    assert wild[0] == WINDOW
    assert len(wild) <= WINDOW // 8 + 1


def test_what_falls_is_no_spike() -> None:
    assert judge([5.0] * WINDOW, 0.1).kind is Kind.FINE
    assert judge([5.0] * WINDOW, 0.0, GRADIENT_NORM).kind is Kind.FINE
    assert judge([0.0] * WINDOW, 0.0, GRADIENT_NORM).kind is Kind.FINE


def test_the_trend_of_a_straight_line_is_the_line() -> None:
    for count in (16, 17, WINDOW, 90):
        line = trend([10.0 + 0.25 * index for index in range(count)])
        assert (line.slope, line.next) == (pytest.approx(0.25), pytest.approx(10.0 + 0.25 * count))
        assert line.spread == pytest.approx(0.0, abs=1e-9)
    falling = trend([10.0 - 0.25 * index for index in range(WINDOW)])
    assert falling.slope == pytest.approx(-0.25)
    assert falling.next >= 10.0 - 0.25 * WINDOW


def test_the_spread_of_normal_noise_is_its_deviation() -> None:
    spreads = [trend(np.random.default_rng(seed).normal(0.0, 3.0, WINDOW)).spread for seed in range(50)]
    assert np.mean(spreads) == pytest.approx(3.0, rel=0.05)
