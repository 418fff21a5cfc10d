"""Whose checkpoints a run goes on from, known before any data is prepared. Free of torch."""

from __future__ import annotations

from pathlib import Path

from tandem.errors import CheckpointError
from tandem.training.checkpoints.folder import CheckpointFolder
from tandem.training.named.weights import CHECKPOINT, not_megatron
from tandem.training.settings.run import Run


def origin_of(run: Run) -> Path | None:
    """The other run whose checkpoints this one goes on from while it has none of its own; None for no other.

    Raises:
        CheckpointError: There are checkpoints that the run may not go on from, or none where it must.
    """
    own, other = run.paths.checkpoints, run.resume.checkpoint
    step = CheckpointFolder(own).latest()
    if step is not None and run.resume.auto is False:
        raise CheckpointError(
            f"{own}: holds a checkpoint of step {step}, and the run may not go on from it; set train_auto_resume=true, "
            "or another OUTPUT_SAVE_DIR, or train anew with --fresh"
        )
    if step is not None or run.resume.load < 2:
        return None
    if other is not None and CHECKPOINT.fullmatch(other.name):
        raise CheckpointError(
            f"{other}: is one checkpoint, and a run goes on from the latest in its folder; set "
            f"USER_CONVERTED_CKPT_PATH={other.parent}, or CKPT_LOAD_TYPE=1 for the weights of this one alone"
        )
    if other is None or CheckpointFolder(not_megatron(other)).latest() is None:
        raise CheckpointError(
            f"{other or own}: holds no checkpoint to go on from; set CKPT_LOAD_TYPE=1, or USER_CONVERTED_CKPT_PATH to "
            "the folder of one, with latest_checkpointed_iteration.txt"
        )
    return other
