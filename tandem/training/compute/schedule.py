"""The learning rate as a function of the step: a linear warm-up, then one of four ways down.

constant   stays at the peak
linear     a straight line to the minimum
cosine     half a cosine to the minimum (Loshchilov and Hutter, 2017)
wsd        stays at the peak (warm-up, stable, decay: MiniCPM, Hu et al., 2024), and falls over the last steps like
           one minus a square root, which of the usual forms gives the lowest loss (Hägele et al., 2024)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandem.training.settings.config import ScheduleKind, StageConfig

if TYPE_CHECKING:  # a plan is drawn without torch
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step of a run."""

    kind: ScheduleKind = "cosine"
    peak: float
    """Reached at the last step of the warm-up."""
    minimum: float
    """Reached at the last step of all, but by `constant`."""
    warmup: int
    """Steps of the warm-up; may be 0."""
    steps: int
    """Steps of the whole run."""
    decay: int = 0
    """Steps of the descent of `wsd`, the last ones."""

    @classmethod
    def of(cls, stage: StageConfig) -> Schedule:
        """A stage's; without `decay_steps`, the last tenth of a run is the descent of `wsd`."""
        return cls(
            kind=stage.schedule,
            peak=stage.lr,
            minimum=stage.min_lr,
            warmup=stage.warmup_steps,
            steps=stage.steps,
            decay=stage.decay_steps or math.ceil(stage.steps / 10),
        )

    def at(self, step: int) -> float:
        """The learning rate of one step, counted from 1."""
        if step <= self.warmup:
            return self.peak * step / self.warmup
        return self.minimum + (self.peak - self.minimum) * self._height(step)

    def _height(self, step: int) -> float:
        """1 at the peak, 0 at the minimum."""
        match self.kind:
            case "constant":
                return 1.0
            case "linear":
                return 1 - self._done(step, self.steps - self.warmup)
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * self._done(step, self.steps - self.warmup)))
            case "wsd":
                return 1 - math.sqrt(self._done(step, self.decay))

    def _done(self, step: int, length: int) -> float:
        """How much of the last `length` steps is behind."""
        return min(1.0, max(0.0, 1 - (self.steps - step) / max(1, length)))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Let every group of the optimizer learn at `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
