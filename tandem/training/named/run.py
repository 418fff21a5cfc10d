"""One stage of a named model: data prepared, weights loaded, trained, exported; what is done already is used again.

    <processed>/data/{pretrain,finetune}/    the prepared data
    <checkpoints>/iter_0000010/ ...          checkpoints
    <checkpoints>/<stage>_hf/                the exported model
    <checkpoints>/<stage>_hf.json            what it was made from
    <logs>/metrics.jsonl, training_loss.png  one line for each step, and the same as a picture
    <process logs>/run_log-<hosts>-<rank>.txt    what each rank says
    <process logs>/run-<host>.json               the run, as the ranks read it

The process that the user starts prepares the data. Then it trains itself, or starts this host's ranks, which read the
run from a file. torch is imported only by those that train, and where another run's weights or an adapter to begin from
must be looked at before.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.errors import UsageError
from tandem.parallel.place import Place
from tandem.training.alone import alone_at
from tandem.training.checkpoints.leftovers import sweep
from tandem.training.launch.work import carry_out, tell_runtime
from tandem.training.named.anew import clear, require_spared
from tandem.training.named.data import prepared_data, prepared_prefix
from tandem.training.named.identity import made_before, require_same_settings
from tandem.training.named.weights import hint_at_model, remarks_on
from tandem.training.progress import Progress, Silence
from tandem.training.settings.resolve import Resolved
from tandem.training.settings.run import Run
from tandem.training.staging.staging import Staging

if TYPE_CHECKING:
    from tandem.parallel.device import DeviceName


def run_named(
    resolved: Resolved, progress: Progress, *, device: DeviceName = "cpu", fresh: bool = False, data_only: bool = False
) -> Path:
    """Do one stage; returns the exported folder, or that of the checkpoints where nothing is exported.

    Args:
        resolved: What to do.
        progress: Is told what happens.
        device: What to train on.
        fresh: Remove this run's own checkpoints, logs and export first.
        data_only: Stop when the data is prepared, and return its folder.

    Raises:
        CheckpointError: There are checkpoints of another run, or none where some are asked for.
        DataError: The data is broken, or too little.
        DivergenceError: Training diverged.
        ModelFolderError: The weights or the tokenizer cannot be used.
        ProcessError: A rank failed.
        RecipeError: Adapters are asked for that the model has no place for.
        StorageError: Something on an object store is not there, cannot be fetched or sent, or is another run's place.
        UsageError: Another process trains there, what is to be made anew is shared by several hosts or holds what the
            run needs, or the device is not there.
    """
    run = resolved.run
    if fresh:
        require_spared(run)
    if missing := missing_files(run):
        raise UsageError("; ".join(missing))
    if not data_only:
        _require_device(run, device)
    staging = Staging(run, prepared_prefix(run), os.environ, progress)
    with ExitStack() as here:
        for place in own_places(run):
            here.enter_context(alone_at(place, progress, work="trains", wait=False))
        here.enter_context(staging.alone())
        staging.take_in(fresh=fresh)
        if missing := missing_files(run, fetched=True):
            raise UsageError("; ".join(missing))
        for note in (*resolved.notes, *remarks_on(run)):
            progress.note(note)
        if fresh:
            staging.clear()
            clear(run)
        if run.launch.node_rank == 0 or run.hosts_apart:
            sweep(run.paths.checkpoints)
        if not data_only:
            _require_beginning(run)
        data = prepared_data(run, progress, lambda key: None if data_only else require_same_settings(run, key))
        staging.send_prepared()
        if data_only:
            return data.prefix.parent
        with staging.sending():
            alone = partial(take_part, run, place=Place(), device=device)
            carry_out(run, run.launch, run.paths.process_logs, progress, device, alone)
        staging.tell()
    return run.exported if run.export else run.paths.checkpoints


def own_places(run: Run) -> list[Path]:
    """Where no other process may train; the logs, too, say where a run goes on.

    Hosts may share the folders; each is alone in its own name.
    """
    folders = dict.fromkeys(Path(os.path.realpath(path)) for path in (run.paths.checkpoints, run.paths.logs))
    return [folder / f"host-{run.launch.node_rank}" for folder in folders]


def missing_files(run: Run, *, fetched: bool = False) -> list[str]:
    """All that a run reads and that is not there, a line each; until it is `fetched`, what is on a store is there."""
    away = None if fetched else run.mirror
    paths = run.paths
    wanted = {
        "raw data (ORIGINAL_TRAIN_DATA_PATH, --data)": None if paths.prepared else paths.data,
        "model folder (ORIGINAL_HF_WEIGHT, --weights)": paths.weights / "config.json",
        "tokenizer (TOKENIZER_PATH, --tokenizer)": paths.tokenizer,
    }
    here = {what: path for what, path in wanted.items() if path and not (away and away.location(path))}
    hints = {paths.weights / "config.json": hint_at_model(paths.weights)}
    lacks = {path: reason for path in here.values() if (reason := lack_of(path))}
    return [f"{path}: {lacks[path]}; {what}{hints.get(path, '')}" for what, path in here.items() if path in lacks]


def lack_of(path: Path) -> str | None:
    """Why something cannot be read, for a message; None where nothing is seen to be wrong."""
    try:
        return None if path.exists() else "is not there"
    except OSError as error:
        return f"cannot be looked at ({error.strerror}), check its name and who may read its folder"


def _require_device(run: Run, device: DeviceName) -> None:
    """Refuse a device that is asked for and not there now, and not when hours of preparing data are over."""
    tell_runtime(run.paths.process_logs)
    if device not in ("auto", "cpu"):
        from tandem.parallel.device import choose_device

        choose_device(device)


def _require_beginning(run: Run) -> None:
    """Refuse what the run can neither go on nor begin from now, and not when hours of preparing data are over."""
    made_before(run)
    if run.resume.checkpoint is not None and run.resume.load == 1:
        from tandem.parallel.world import World  # imports torch: only where another run must be looked at
        from tandem.training.named.begin import base_of

        base_of(run, World()).require_usable()


def take_part(run: Run, progress: Progress, place: Place, device: DeviceName) -> None:
    """Train as one of the ranks; the data is prepared. Arguments and errors as `train_and_export`."""
    from tandem.training.named.stage import train_and_export

    data = prepared_data(run, Silence())
    train_and_export(run, data, progress, place, device)
