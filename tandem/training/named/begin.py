"""What a run begins from: published weights, random ones, or a checkpoint, its own or another run's."""

from __future__ import annotations

from pathlib import Path

import torch

from tandem.errors import CheckpointError
from tandem.model.decoder import Decoder
from tandem.model.folder import load
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.named.weights import config_of, not_megatron, weights_of
from tandem.training.settings.run import Run


def base_model(run: Run) -> Decoder:
    """The decoder before the first step, fp32 on the CPU, with gradients: published weights, or random ones.

    Errors as `config_of`.
    """
    config = config_of(run)
    if run.resume.load == 0:
        decoder = Decoder(config)
        decoder.initialise(run.seed)
        return decoder
    return load(weights_of(run), torch.device("cpu"), torch.float32).unfreeze()


def beginning(run: Run) -> Path | None:
    """The other run whose checkpoints this one goes on from while it has none of its own; None for no other.

    Raises:
        CheckpointError: There are checkpoints that the run may not go on from, or none where it must.
    """
    own, other = run.paths.checkpoints, run.resume.checkpoint
    step = _latest(own)
    if step is not None and run.resume.auto is False:
        raise CheckpointError(
            f"{own}: holds a checkpoint of step {step}, and the run may not go on from it; set train_auto_resume=true, "
            "or another CKPT_SAVE_PATH, or train anew with --fresh"
        )
    if step is not None or run.resume.load < 2:
        return None
    if other is None or _latest(not_megatron(other)) is None:
        raise CheckpointError(
            f"{other or own}: holds no checkpoint to go on from; set CKPT_LOAD_TYPE=1, or USER_CONVERTED_CKPT_PATH to "
            "the folder of one, with latest_checkpointed_iteration.txt"
        )
    return other


def _latest(folder: Path) -> int | None:
    return CheckpointStore(folder, {}, keep_last=1).latest()
