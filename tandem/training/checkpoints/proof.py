"""`Proof`: what a checkpoint's weights make of some samples.

Digests prove that a checkpoint is what was written; this proves that the data, what is frozen and the code are those
that it was trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tandem.errors import CheckpointError
from tandem.training.settings.config import Precision

TOLERANCE: Final[dict[Precision, float]] = {"float32": 1e-4, "bfloat16": 3e-2}
"""Relative difference that what the same weights make of the same samples may have: other ranks, threads and devices
round otherwise."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A checkpoint names the samples; a run that resumes must find the same."""

    position: int
    """First sample."""
    count: int
    loss: float
    """Mean over their valid targets, in nats, after the step's update."""

    def check(self, loss: float, precision: Precision, step: int, folder: Path) -> None:
        """Hold against it what the samples come to now.

        Args:
            loss: Of the same samples, by the weights that were loaded.
            precision: What is computed in.
            step: Of the checkpoint, for the message.
            folder: Of the checkpoints, for the message.

        Raises:
            CheckpointError: It is another.
        """
        far = abs(loss - self.loss) / max(1.0, abs(self.loss))
        # A loss that was no number already is the guard's to judge; one that has become none is another.
        if math.isfinite(self.loss) and not far <= TOLERANCE[precision]:
            raise CheckpointError(
                f"{folder}: step {step} had a loss of {self.loss:.6f} over samples "
                f"{self.position} to {self.position + self.count - 1}, and has {loss:.6f} now: the data, the frozen "
                "weights or the code are not those it was trained with; bring them back, or train anew with --fresh"
            )
