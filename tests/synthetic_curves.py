"""Curves as training draws them, each a function of a seed; losses in nats, norms positive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]
STEPS = 1000


def _noise(seed: int, scale: float) -> Curve:
    return np.random.default_rng(seed).normal(0.0, scale, STEPS)


def descent(seed: int) -> Curve:
    """Pretraining: steep at first, then a power law."""
    return 2.0 + 8.5 * (1 + np.arange(STEPS) / 15) ** -0.6 + _noise(seed, 0.05)


def cliff(seed: int) -> Curve:
    """Two nats lost every ten steps at the start, then nearly flat."""
    return 3.0 + 8.0 * np.exp(-np.arange(STEPS) / 20) + _noise(seed, 0.03)


def plateau(seed: int) -> Curve:
    """Flat, falls to the next level all at once, flat."""
    return np.where(np.arange(STEPS) < STEPS // 2, 4.0, 2.5) + _noise(seed, 0.04)


def small_batches(seed: int) -> Curve:
    """Fine-tuning: what is in the batch changes the loss more than training does."""
    return np.random.default_rng(seed).gamma(4.0, 0.3, STEPS)


def waves(seed: int) -> Curve:
    """Noise that lasts: neighbouring samples are alike."""
    steps, values = _noise(seed, 0.05), np.empty(STEPS)
    state = 0.0
    for index, step in enumerate(steps):
        state = 0.9 * state + step
        values[index] = 2.5 + state
    return values


def memorised(seed: int) -> Curve:
    """Nearly nothing left to learn, and now and then a sample that is new."""
    random = np.random.default_rng(seed)
    return 0.02 * np.exp(random.normal(0.0, 0.8, STEPS))


def norms(seed: int) -> Curve:
    """Log-normal around a slow fall."""
    return np.exp(_noise(seed, 0.25)) * (0.4 + 2.0 * np.exp(-np.arange(STEPS) / 100))


def warming_norms(seed: int) -> Curve:
    """Falls during the warm-up, rises when the learning rate is at its peak, settles."""
    steps = np.arange(STEPS)
    return np.exp(_noise(seed, 0.15)) * (0.5 + 4.0 * np.exp(-steps / 30) + 1.5 * np.exp(-(((steps - 150) / 50) ** 2)))


def heavy_norms(seed: int) -> Curve:
    """Student's t with three degrees of freedom, of the logarithm."""
    return np.exp(0.15 * np.random.default_rng(seed).standard_t(3, STEPS))


LOSSES: dict[str, Callable[[int], Curve]] = {
    each.__name__: each for each in (descent, cliff, plateau, small_batches, waves, memorised)
}
NORMS: dict[str, Callable[[int], Curve]] = {each.__name__: each for each in (norms, warming_norms, heavy_norms)}
