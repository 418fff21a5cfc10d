"""What a killed run leaves in its folder of checkpoints: some of one that was being written, or removed. No torch."""

from __future__ import annotations

import shutil
from pathlib import Path


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint; half a one never bears its name."""
    if checkpoint.exists():
        part = checkpoint.with_name(f".{checkpoint.name}.old.part")
        shutil.rmtree(part, ignore_errors=True)
        checkpoint.rename(part)
        shutil.rmtree(part)


def sweep(folder: Path) -> None:
    """Remove what kills have left; for the one process that writes there, while it writes none."""
    for part in folder.glob(".iter_*.part"):
        shutil.rmtree(part, ignore_errors=True)
