"""TensorBoard event files, where `tensorboardX` is installed: the extra `tensorboard`, 90 kB and protobuf."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tandem.training.progress import StepReport

NAMES = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "balance": "train/balance_loss",
    "load_max": "train/load_max",
    "grad_norm": "train/grad_norm",
    "skipped": "train/skipped_batches",
    "tokens_per_s_device": "speed/tokens_per_s_device",
    "real_tokens_per_s": "speed/real_tokens_per_s",
    "learnt_tokens_per_s": "speed/learnt_tokens_per_s",
    "mfu": "speed/mfu",
    "seconds": "speed/step_seconds",
    "memory_peak": "memory/peak_bytes",
}
"""Field of a report -> what TensorBoard calls it."""


def can_write() -> bool:
    """Whether the writer is installed."""
    return importlib.util.find_spec("tensorboardX") is not None


class Board:
    """Writes reports as scalars.

    Args:
        folder: For `tensorboard --logdir`.
        step: The step the run continues from; what is there of later ones is hidden from now on.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._folder = folder
        self._writer = self._open(step)

    def append(self, report: StepReport) -> None:
        """All numbers of one step; a thread writes them."""
        for field, name in NAMES.items():
            if (value := getattr(report, field)) is not None:
                self._writer.add_scalar(name, value, report.step)

    def go_back(self, step: int) -> None:
        """Hide what came after a step."""
        self._writer.close()
        self._writer = self._open(step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _open(self, step: int) -> Any:
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=step + 1)
