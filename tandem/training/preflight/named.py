"""All that a run of a named model could fail of later, looked at on this host; no weight is read, nothing is started.

Everything is looked at with the code that the run itself takes: what a look raises is what the run would end with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

from tandem.catalogue.arithmetic import parameters
from tandem.model.folder import own_dtype
from tandem.model.weights.files import weight_files
from tandem.parallel.device import DeviceName
from tandem.training.data.sample import Sample
from tandem.training.named.data import prepared_prefix, sampled_data
from tandem.training.named.memory import memory_demand
from tandem.training.named.run import lack_of, missing_files
from tandem.training.named.weights import config_of, weights_of
from tandem.training.plan.demand import Need
from tandem.training.preflight.checkpoints import look_at_checkpoints, look_at_work
from tandem.training.preflight.data import look_at_data, prepared_bytes
from tandem.training.preflight.finding import Finding, Look, Remark, findings, note, problem
from tandem.training.preflight.hosts import look_at_meeting, look_at_memory, look_at_ranks
from tandem.training.preflight.machine import look_at_machine
from tandem.training.preflight.model import look_at_model
from tandem.training.preflight.space import held, look_at_folders
from tandem.training.preflight.stores import look_at_stores
from tandem.training.progress import Silence
from tandem.training.settings.resolve import Resolved
from tandem.training.settings.run import Run
from tandem.training.staging.staging import Staging


def check_named(
    resolved: Resolved, device: DeviceName, environment: Mapping[str, str], *, fresh: bool
) -> Iterator[Finding]:
    """Look at everything, and tell all that is found.

    Args:
        resolved: What shall be done.
        device: On what.
        environment: The process's variables: credentials, interfaces.
        fresh: Whether the run's own checkpoints are to be thrown away first.
    """
    asked, launch = resolved.run, resolved.run.launch
    # What it begins from and is on a store is no file yet; without it everything else can be looked at.
    run = asked if (away := _other_away(asked)) is None else _without_other(asked)
    sample, need = cache(partial(sampled_data, run)), cache(lambda: memory_demand(run, device).need)
    staging = cache(lambda: Staging(asked, prepared_prefix(asked), environment, Silence()))
    whole = not missing_files(run, fetched=True) and not _is_away(run)
    model = not (lack_of(run.paths.weights / "config.json") or lack_of(run.paths.tokenizer))
    looks: dict[str, Look] = {
        "settings": lambda: map(note, resolved.notes),
        "files": lambda: _files(run, away),
        "store": lambda: look_at_stores(asked, staging()),
        "data": lambda: look_at_data(run, sample),
        "model": lambda: look_at_model(run),
        "work": lambda: look_at_work(run),
        "checkpoints": lambda: _checkpoints(run, staging(), sample if whole and away is None else None, fresh=fresh),
        "ranks": lambda: look_at_ranks(launch, device),
        "memory": lambda: look_at_memory(need(), launch, device),
        "folders": lambda: look_at_folders(_wanted(run, need(), sample if whole else None)),
        "hosts": lambda: look_at_meeting(launch, device, environment),
        "machine": lambda: look_at_machine(launch, device, _weight_files(run) if model else 0, _inputs(run)),
    }
    seen = {"data": whole, "model": model}
    return findings({subject: look for subject, look in looks.items() if seen.get(subject, True)})


def _checkpoints(run: Run, staging: Staging, sample: Callable[[], Sample] | None, *, fresh: bool) -> Iterator[Remark]:
    """Where the run begins; what is here says that only where no store knows better, and the inputs are here."""
    if not fresh and (step := staging.away()) is not None:
        yield note(
            f"{run.paths.checkpoints}: gets the checkpoint of step {step}, which is on the store, when the run begins; "
            "whether it goes on from that can be seen only then"
        )
    elif sample is not None:
        yield from look_at_checkpoints(run, sample, fresh=fresh)


def _other_away(run: Run) -> Path | None:
    """What a run shall begin from, where that is on a store and has not been fetched."""
    other = run.resume.checkpoint
    stored = other is not None and run.mirror is not None and run.mirror.location(other) is not None
    return other if stored and other is not None and lack_of(other) else None


def _without_other(run: Run) -> Run:
    return run.model_copy(update={"resume": run.resume.model_copy(update={"checkpoint": None})})


def _files(run: Run, other: Path | None) -> Iterator[Remark]:
    yield from map(problem, missing_files(run))
    if run.mirror is None:
        return
    paths = run.paths
    away = {paths.tokenizer: lack_of(paths.tokenizer), paths.weights: lack_of(paths.weights / "config.json")}
    if paths.data and not paths.prepared:
        away[paths.data] = lack_of(paths.data)
    if other is not None:
        away[other] = lack_of(other)
    for path, lacks in away.items():
        if lacks and (location := run.mirror.location(path)):
            yield note(f"{location}: is fetched when the run begins; what is in it can be seen only then")


def _is_away(run: Run) -> bool:
    """Whether prepared data is on a store, and has not been fetched."""
    prepared = run.paths.prepared
    stored = prepared is not None and run.mirror is not None and run.mirror.location(prepared) is not None
    return stored and prepared is not None and not any(prepared.parent.glob(f"{prepared.name}*"))


def _wanted(run: Run, need: Need, sample: Callable[[], Sample] | None) -> dict[Path, int]:
    """Bytes that come into each folder: as many checkpoints as there ever are at once, the export, prepared data."""
    paths = run.paths
    export, prepared = 0, 0
    if sample is not None and run.export:
        folder = weights_of(run)
        export = parameters(config_of(run, folder)) * own_dtype(folder).itemsize + (need.checkpoint if run.lora else 0)
    if sample is not None and not paths.prepared:
        prepared = prepared_bytes(run, sample())
    there = held(paths.checkpoints, "iter_*") + held(paths.checkpoints, run.exported.name)
    # One more than are kept: it is whole before the oldest goes.
    made = (run.training.keep_last + 1) * need.checkpoint + export
    return {paths.checkpoints: max(0, made - there), paths.processed: prepared, paths.logs: 0, paths.process_logs: 0}


def _weight_files(run: Run) -> int:
    return 0 if run.resume.load == 0 else len(weight_files(weights_of(run)).paths)


def _inputs(run: Run) -> list[Path]:
    given = (run.paths.prepared, run.paths.data, run.paths.weights / "config.json", run.paths.tokenizer)
    return [path for path in given if path and path.exists()]
