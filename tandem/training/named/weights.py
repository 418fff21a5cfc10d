"""The model folder that a run begins from, looked at before anything is done. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tandem.catalogue.arithmetic import parameters
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import find_model
from tandem.errors import CheckpointError, ModelFolderError
from tandem.model.families import translate
from tandem.training.adapters import peft_config
from tandem.training.adapters.targets import rank_to_spare, resolved
from tandem.training.settings.run import Run

CHECKPOINT = re.compile(r"iter_([0-9]{7,15})")
"""Names of checkpoints' folders, and their steps."""


def weights_of(run: Run) -> Path:
    """The model folder that weights are taken from: published, or another run's export.

    Raises:
        CheckpointError: The other run's folder has no weights.
    """
    other = run.resume.checkpoint
    if other is None or run.resume.load != 1 or adapter_of(run) is not None:
        return run.paths.weights
    if (not_megatron(other) / "config.json").is_file():
        return other
    if not any(CHECKPOINT.fullmatch(path.name) for path in (other, *other.glob("iter_*"))):
        fix = _hint_at_merging(other) or (
            ", and weights alone are taken from one of these; give a run's exported folder, its folder of checkpoints, "
            "or one iter_ folder in that"
        )
        raise CheckpointError(f"{other}: is no model folder and holds no checkpoint{fix}")
    return run.paths.weights


def adapter_of(run: Run) -> Path | None:
    """The folder in PEFT's format whose adapter a run of LoRA goes on training; None where it begins a new one."""
    other = run.resume.checkpoint
    if run.lora is None or run.resume.load != 1 or other is None or not (other / peft_config.FILE).is_file():
        return None
    return other


def config_of(run: Run, folder: Path) -> ModelConfig:
    """The shape of what is trained: that of the folder which `weights_of` names.

    Raises:
        ModelFolderError: The folder cannot be used, or holds a model of another family or with too few positions.
        RecipeError: Adapters are asked for that it has no place for.
    """
    named = find_model(run.model).config
    _, config, _ = translate(folder)
    if config.family != named.family:
        raise ModelFolderError(
            f"{folder}: holds a {config.family} model, {run.model} is a {named.family}; give its own"
        )
    if run.training.seq_length > config.max_position and run.max_position is None:
        raise ModelFolderError(
            f"{folder}: takes {config.max_position} tokens, a sample has {run.training.seq_length}; lower SEQ_LEN, or "
            "raise MAX_PE"
        )
    if run.lora is not None:
        resolved(config, run.lora)
    return config


def remarks_on(run: Run) -> Iterator[str]:
    """What the user should know of the folder, a line each. Errors as `weights_of` and `config_of`."""
    folder = weights_of(run)
    if run.resume.load:
        yield f"weights: {folder} is read as it is; no conversion is needed"
    config = config_of(run, folder)
    if parameters(config) != parameters(find_model(run.model).config):
        yield f"{folder}: is not as large as {run.model}; its recipe is taken all the same"
    if run.lora is not None and (spare := rank_to_spare(config, run.lora)):
        yield spare
    if run.lora is not None and (adapter := adapter_of(run)):
        from tandem.training.named.adapter import adapter_at  # imports torch: only where an adapter must be looked at

        adapter_at(adapter, config, run.lora)
        yield f"adapter: {adapter} is gone on with, with a fresh optimizer"


def hint_at_model(folder: Path) -> str:
    """What to give in place of a folder that is no model's, to be said behind that; empty where nothing is known."""
    if adapter := _hint_at_merging(folder):
        return adapter
    is_one = CHECKPOINT.fullmatch(folder.name)
    if models := sorted(path.parent for path in (folder.parent if is_one else folder).glob("*/config.json")):
        return f"; give {' or '.join(map(str, models))}"
    if is_one or any(folder.glob("iter_*")) or any(folder.glob("checkpoints/iter_*")):
        return (
            "; this one holds checkpoints: give the model folder that their run began from here, and the checkpoints "
            "as USER_CONVERTED_CKPT_PATH (--set resume.checkpoint=…)"
        )
    return ""


def _hint_at_merging(folder: Path) -> str:
    there = (folder / peft_config.FILE).is_file()
    if not there:
        return ""
    return (
        "; this is an adapter: `tandem lora merge BASE ADAPTER OUT` makes a model folder of it, and as "
        "USER_CONVERTED_CKPT_PATH (--set resume.checkpoint=…) the stage lora goes on training it"
    )


def not_megatron(folder: Path) -> Path:
    """The folder itself.

    Raises:
        CheckpointError: It holds Megatron's files.
    """
    if any(folder.glob("*/mp_rank_*")) or any(folder.glob("mp_rank_*")):
        raise CheckpointError(
            f"{folder}: holds Megatron's mp_rank files, which are not read; give a Hugging Face folder"
        )
    return folder
