"""The learning rate as a function of the step: a linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Warm-up and cosine decay (Loshchilov and Hutter, 2017)."""

    peak: float
    """Reached at the last step of the warm-up."""
    minimum: float
    """Reached at the last step of all."""
    warmup: int
    """Steps of the warm-up; may be 0."""
    steps: int
    """Steps of the whole run."""

    def at(self, step: int) -> float:
        """The learning rate of one step, counted from 1."""
        if step <= self.warmup:
            return self.peak * step / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.minimum + (self.peak - self.minimum) * 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Let every group of the optimizer learn at `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
