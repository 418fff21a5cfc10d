"""TensorBoard event files, where `tensorboardX` is installed: the extra `tensorboard`, 90 kB and protobuf."""

from __future__ import annotations

import importlib.util
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tandem.training.progress import StepReport
from tandem.training.watch.growing import GrowingFile

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
    """Writes reports as scalars, each as it comes.

    tensorboardX's own writer has a thread and a queue: once a full disk has ended the thread, the queue fills, and the
    training waits for ever.

    Args:
        folder: For `tensorboard --logdir`; created where missing.
        step: The step the run continues from; what is there of later ones is hidden from now on.
        note: Is told when the file cannot be written.
    """

    def __init__(self, folder: Path, step: int, note: Callable[[str], None] = lambda text: None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{os.uname().nodename}"
        self._file = GrowingFile(folder / name, note)
        self._write(file_version="brain.Event:2")
        self.go_back(step)

    def append(self, report: StepReport) -> None:
        """All numbers of one step."""
        values = ((name, getattr(report, field)) for field, name in NAMES.items())
        scalars = [{"tag": name, "simple_value": value} for name, value in values if value is not None]
        self._write(step=report.step, summary={"value": scalars})

    def go_back(self, step: int) -> None:
        """Hide what came after a step."""
        self._write(step=step + 1, session_log={"status": "START"})

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        """One record of the TFRecord format: length (u64), its checksum (u32), the bytes, their checksum (u32)."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        content = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.append(length + checksums[0] + content + checksums[1])
