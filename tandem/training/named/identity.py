"""What a run's result depends on: equal identities, equal results, bit for bit on the same ranks. Free of torch."""

from __future__ import annotations

from dataclasses import replace

from tandem.errors import CheckpointError
from tandem.files import read_json_object
from tandem.training.checkpoints.finished import Finished
from tandem.training.checkpoints.folder import CheckpointFolder
from tandem.training.checkpoints.lengthening import is_longer
from tandem.training.inputs import Inputs
from tandem.training.named.origin import origin_of
from tandem.training.settings.config import StageConfig, StepConfig
from tandem.training.settings.run import Run

NO_RESULT = {"save_every", "keep_last", "guard", "micro_batch", "recompute"}
"""Settings of a step that do not change what it learns, or are decided while it is under way."""


def settings_of(run: Run, data: str, training: StepConfig | None = None) -> Inputs:
    """What the run itself and its data say, with no look at weights or checkpoints.

    Args:
        run: What to do.
        data: Key of the prepared data.
        training: How, with the length where that is known; by default the run's own, without.
    """
    return {
        "for": run.stage,
        "data": data,
        "seed": run.seed,
        "pack": run.data.pack,
        "documents_apart": run.data.documents_apart,
        "stage": (training or run.training).model_dump(mode="json", exclude=NO_RESULT),
        "lora": None if run.lora is None else run.lora.model_dump(mode="json"),
    }


def identity_of(run: Run, data: str, config: StageConfig, model: str, begins_from: Inputs | None) -> Inputs:
    """All of it.

    Args:
        run: What to do.
        data: Key of the prepared data.
        config: How, and how long.
        model: Which weights it stands on.
        begins_from: Which checkpoint of another run it took weights from.
    """
    begins = {} if begins_from is None else {"begins_from": begins_from}
    return begins | settings_of(run, data, config) | {"model": model}


def finished(run: Run) -> Finished:
    """What the run has trained before.

    Raises:
        CheckpointError: The file that says what its export was made from is broken.
    """
    exported = run.export and run.exported.is_dir() and run.mark.exists()
    return Finished(
        place=run.exported,
        checkpoints=CheckpointFolder(run.paths.checkpoints),
        exported_from=read_json_object(run.mark, CheckpointError) if exported else None,
        way_out="set another OUTPUT_SAVE_DIR, or train anew with --fresh",
    )


def made_before(run: Run) -> Finished:
    """What the run has trained before; of one that goes on from another run's checkpoints what that one has.

    Raises:
        CheckpointError: As `finished` and `origin_of`.
    """
    before = finished(run)
    if before.exported_from is None and (origin := origin_of(run)) is not None:
        alone = "take its weights alone (CKPT_LOAD_TYPE=1)"
        return replace(before, place=origin, checkpoints=CheckpointFolder(origin), way_out=alone)
    return before


def require_same_settings(run: Run, data: str | None = None) -> None:
    """Refuse settings, and data, that the run was not trained with so far, before data is made in place of others.

    Args:
        run: What to do.
        data: Key of the data that is about to be prepared; None while that is not known.

    Raises:
        CheckpointError: They differ; or as `made_before`.
    """
    before = made_before(run)
    if (made_from := before.made_from) is None:
        return
    known = run.length.steps or run.length.samples
    asked_for = settings_of(run, data or made_from.get("data", ""), run.stage_config(0) if known else None)
    stage = {name: made_from["stage"].get(name) for name in asked_for["stage"]}
    told = {name: made_from.get(name) for name in asked_for} | {"stage": stage}
    if not (known and is_longer(told, asked_for)):
        before.require(told, asked_for)
