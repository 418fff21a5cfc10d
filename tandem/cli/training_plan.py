"""Shows what can be trained, what can be set, what a command would do, and what it would fail of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tandem.cli.train import Device
    from tandem.training.plan.demand import Need
    from tandem.training.preflight.finding import Finding
    from tandem.training.settings.config import Recipe, StageConfig
    from tandem.training.settings.resolve import Resolved
    from tandem.training.settings.run import Run


def print_recipes(*, json: bool) -> None:
    """A line for each built-in recipe, and one for each named model."""
    from tandem.catalogue.drawing import short_layout
    from tandem.catalogue.models import MODELS
    from tandem.training.settings.named_recipe import named_recipes
    from tandem.training.settings.recipe import built_in_recipes
    from tandem.training.settings.recommended import recommended

    if json:
        print(dumps([{"model": name} | asdict(recommended(name)) for name in named_recipes()], indent=2))
        return
    rows = []
    for name in named_recipes():
        of = recommended(name)
        rows.append((name, f"{of.seq_length}", f"{of.micro_batch}", f"{of.lora_micro_batch}", f"{of.global_batch}",
                     f"{of.lr:g}", f"{of.min_lr:g}", short_layout(MODELS[name].layouts[0])))  # fmt: skip
    _print(_table(("model", "SEQ_LEN", "MBS", "MBS lora", "GBS", "LR", "MIN_LR", "TP×PP / cards"), rows))
    print("* not stated by the documents; `tandem model show NAME` says where it comes from")
    print(f"recipes for new models: {', '.join(built_in_recipes())}")


def print_settings(*, json: bool) -> None:
    """A line for each setting, with the documents' variable for it."""
    from tandem.training.settings.resolve import setting_rows

    headings = ("setting", "variable", "meaning")
    if json:
        print(dumps([dict(zip(headings, row, strict=True)) for row in setting_rows()], indent=2))
    else:
        _print(_table(headings, setting_rows()))


def print_plan(given: Recipe | Resolved, device: Device, *, json: bool) -> None:
    """What a command would do: every setting with where it comes from, and the memory of each rank."""
    from tandem.training.settings.config import Recipe

    if isinstance(given, Recipe):
        _print_recipe(given, json=json)
        return
    from tandem.training.named.memory import memory_demand
    from tandem.training.named.run import missing_files

    demand = memory_demand(given.run, device)  # what is refused of model or device is refused before anything is shown
    notes = [*given.notes, *missing_files(given.run)]
    samples = _samples(given.run, notes)
    if json:
        print(dumps(_as_json(given, demand.need, notes, samples), indent=2))
        return
    _print_run(given, notes, samples)
    print(flush=True)  # the memory takes seconds
    _print_memory(demand.need)


def _print_recipe(recipe: Recipe, *, json: bool) -> None:
    fields = recipe.model_dump(mode="json")
    if json:
        print(dumps(fields, indent=2))
        return
    _print(_table(("setting", "value"), _flat(fields)))
    for name, stage in (("pretrain", recipe.pretrain), ("sft", recipe.sft)):
        _print_schedule(name, stage)


def _as_json(given: Resolved, need: Need, notes: list[str], samples: int | None) -> dict[str, Any]:
    run = given.run
    steps = None if samples is None else run.stage_config(samples).steps
    change = need.change.what if need.change else None
    return {
        "run": run.model_dump(mode="json"),
        "origins": dict(given.origins),
        "notes": notes,
        "samples": samples,
        "steps": run.length.steps or steps,
        "memory": need.plan.as_json() | {"capacity": need.capacity, "fits": need.fits, "change": change},
    }


def _print_run(given: Resolved, notes: list[str], samples: int | None) -> None:
    from tandem.training.named.stage import length_in_words

    run = given.run
    rows = ((name, value, given.origins.get(name, "")) for name, value in _flat(run.model_dump(mode="json")))
    _print(_table(("setting", "value", "from"), rows))
    for note in notes:
        print(f"note: {note}")
    if samples is not None:
        print(length_in_words(run, samples))
    # Only shares of the run are drawn, so any number of samples will do.
    _print_schedule(run.stage, run.stage_config(samples or 1000 * run.training.global_batch))


def _print_memory(need: Need) -> None:
    from tandem.training.plan.drawing import advice, draw_plan

    _print(draw_plan(need.plan, need.capacity))
    if not need.fits:
        print(advice(need.change))


def print_findings(found: Iterable[Finding], *, json: bool) -> int:
    """What was found, a line each; returns the exit code, 3 where the run would fail."""
    from tandem.training.preflight.finding import counted

    every = list(found)
    problems = [finding for finding in every if finding.remark.verdict == "problem"]
    if json:
        print(dumps({"problems": len(problems), "findings": [finding.as_json for finding in every]}, indent=2))
        return 3 if problems else 0
    rows = ((finding.subject, finding.remark.verdict, finding.remark.text) for finding in every)
    _print(_table(("what", "verdict", "found"), rows))
    if not problems:
        print("nothing was found that it would fail of")
        return 0
    print(f"{counted(len(problems), 'problem')}: the run would fail")
    return 3


def _samples(run: Run, notes: list[str]) -> int | None:
    """How many samples there are, where the data was prepared before and is on this host; what is wrong is a note."""
    from tandem.errors import DataError
    from tandem.training.named.data import data_there
    from tandem.training.named.stage import open_batches

    if run.paths.prepared is None or (run.mirror and run.mirror.location(run.paths.prepared)):
        return None
    try:
        return open_batches(run, data_there(run)).samples
    except DataError as error:
        notes.append(str(error))
        return None


def _print_schedule(name: str, stage: StageConfig) -> None:
    from tandem.training.compute.schedule import Schedule
    from tandem.training.compute.sketch import bars

    end = "" if stage.schedule == "constant" else f", {stage.min_lr:g} at the end"
    print(f"{name}: learning rate {bars(Schedule.of(stage))} {stage.schedule}, {stage.lr:g} at its highest{end}")


def _flat(fields: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, "-" if value is None else str(value)


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def _print(table: Table) -> None:
    """Whole lines, however narrow the terminal: they are read with `less -S` and `grep`."""
    console = Console(markup=False, highlight=False)
    console.width = Console(width=1000).measure(table).maximum
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))
