"""What a run begins from: published weights, random ones, or a checkpoint, its own or another run's."""

from __future__ import annotations

from pathlib import Path

import torch

from tandem.catalogue.arithmetic import parameters
from tandem.catalogue.models import find_model
from tandem.errors import CheckpointError, ModelFolderError
from tandem.model.decoder import Decoder
from tandem.model.families import translate
from tandem.model.folder import load
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.progress import Progress
from tandem.training.settings.run import Run


def base_model(run: Run, progress: Progress) -> Decoder:
    """The decoder before the first step, fp32 on the CPU, with gradients: published weights, or random ones.

    Raises:
        ModelFolderError: The folder cannot be used, or holds a model of another family or with too few positions.
    """
    folder, named = weights_of(run), find_model(run.model).config
    _, config, _ = translate(folder)
    if config.family != named.family:
        raise ModelFolderError(
            f"{folder}: holds a {config.family} model, {run.model} is a {named.family}; give its own"
        )
    if parameters(config) != parameters(named):
        progress.note(f"{folder}: is not as large as {run.model}; its recipe is taken all the same")
    if run.training.seq_length > config.max_position and run.max_position is None:
        raise ModelFolderError(
            f"{folder}: takes {config.max_position} tokens, a sample has {run.training.seq_length}; lower SEQ_LEN, or "
            "raise MAX_PE"
        )
    if run.resume.load == 0:
        decoder = Decoder(config)
        decoder.initialise(run.seed)
        return decoder
    return load(folder, torch.device("cpu"), torch.float32).unfreeze()


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
    if other is None or _latest(_known(other)) is None:
        raise CheckpointError(
            f"{other or own}: holds no checkpoint to go on from; set CKPT_LOAD_TYPE=1, or USER_CONVERTED_CKPT_PATH to "
            "the folder of one, with latest_checkpointed_iteration.txt"
        )
    return other


def _latest(folder: Path) -> int | None:
    return CheckpointStore(folder, {}, keep_last=1).latest()


def weights_of(run: Run) -> Path:
    """The folder that weights alone are taken from: published, or those of another run.

    Raises:
        CheckpointError: The other run's folder is no model's.
    """
    other = run.resume.checkpoint
    if other is None or run.resume.load != 1:
        return run.paths.weights
    if not (_known(other) / "config.json").is_file():
        raise CheckpointError(
            f"{other}: is no model folder, and weights alone are taken from one; give a run's exported folder, or set "
            "CKPT_LOAD_TYPE=2 to go on from its checkpoints"
        )
    return other


def _known(folder: Path) -> Path:
    """Refuse Megatron's folders by name."""
    if any(folder.glob("*/mp_rank_*")) or any(folder.glob("mp_rank_*")):
        raise CheckpointError(
            f"{folder}: holds Megatron's mp_rank files, which are not read; give a Hugging Face folder"
        )
    return folder
