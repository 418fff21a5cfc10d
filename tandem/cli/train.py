"""`tandem train`: pretrain a model, fine-tune it, whole or with LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tandem.training.progress import Progress
    from tandem.training.settings.config import Recipe
    from tandem.training.settings.resolve import Resolved
    from tandem.training.settings.run import StageName
    from tandem.training.settings.values import Values

STAGES = ("pretrain", "sft", "lora")

app = cyclopts.App(
    name="train", help="Train a model: pretrain, sft, lora; report how it went.", usage="Usage: tandem train COMMAND"
)

app.command("tandem.cli.train_report:report", name="report", help="Show how a run went.")

Device = Literal["auto", "cpu", "cuda", "npu"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all stages take."""

    out: str | None = None
    """Folder of the run; what is there from the same inputs is used again. Named models: here, by default. This and the
    next four may be on an object store, as s3://BUCKET/KEY, for a named model."""
    data: str | None = None
    """Raw data for a named model: a file or a folder (ORIGINAL_TRAIN_DATA_PATH)."""
    weights: str | None = None
    """Model folder to begin from (ORIGINAL_HF_WEIGHT)."""
    tokenizer: str | None = None
    """Folder of the tokenizer files; by default where the weights are (TOKENIZER_PATH)."""
    prepared: str | None = None
    """Data prepared before, in place of `--data` (USER_PROCESSED_DATA_DIR)."""
    set: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """A setting of a named model, as in `--set training.lr=1e-5`; `tandem train settings` lists them."""
    plan: Annotated[bool, Parameter(negative="")] = False
    """Only show what would be done, with where each value comes from."""
    check: Annotated[bool, Parameter(negative="")] = False
    """Only look at all that the run could fail of on this host: data, weights, memory, disk, hosts, stores; exit code 3
    if it would."""
    json: Annotated[bool, Parameter(negative="")] = False
    """Show the plan, or with --check what was found, as JSON."""
    resume: bool | None = None
    """Go on from the latest checkpoint, as is done by default; else the stage begins anew, or, of a named model, is
    refused where there is a checkpoint."""
    fresh: Annotated[bool, Parameter(negative="")] = False
    """Make everything in the folder of the run anew."""
    data_only: Annotated[bool, Parameter(negative="")] = False
    """Stop when the data is prepared; for a named model."""
    ranks: int | None = None
    """Processes on this host; one for each device by default, on CPUs one."""
    device: Device = "auto"
    """What to train on; auto takes the best there is."""


Given = Annotated[Options, Parameter(name="*")]


@app.command
def pretrain(what: str, /, *, options: Given = Options()) -> int:
    """Train on plain text: a new model from a recipe of one, or a named model further.

    Args:
        what: A built-in recipe, such as quickstart, a model of `tandem train list`, or a path to a .yaml file.
        options: See below.
    """
    return train("pretrain", what, options)


@app.command
def sft(what: str, /, *, options: Given = Options()) -> int:
    """Fine-tune a model on conversations; of a recipe for a new one, stages before it are done first.

    Args:
        what: A built-in recipe, such as quickstart, a model of `tandem train list`, or a path to a .yaml file.
        options: See below.
    """
    return train("sft", what, options)


@app.command
def lora(what: str, /, *, options: Given = Options()) -> int:
    """Fine-tune small factors beside a named model's frozen weights.

    Args:
        what: A model of `tandem train list`, or a path to a .yaml file.
        options: See below.
    """
    return train("lora", what, options)


@app.command(show=False)
def rank(run: Path, /, *, device: Device) -> None:
    """Take one rank's part in a run: what the command that a user gives starts.

    Args:
        run: The run, as that command wrote it.
        device: What to train on.
    """
    import os

    from tandem.parallel.place import Place
    from tandem.training.launch.rank import one_of_several
    from tandem.training.part import take_part

    place = Place.told(os.environ) or Place()
    with one_of_several(), _shown() as progress:
        take_part(run, progress, place, device)


@app.command(name="list")
def list_recipes(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the recipes: what each named model is trained with, for every stage.

    Args:
        json: Print as JSON.
    """
    from tandem.cli.training_plan import print_recipes

    print_recipes(json=json)


@app.command
def settings(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the settings of a named model's run, and the documents' variable for each.

    Args:
        json: Print as JSON.
    """
    from tandem.cli.training_plan import print_settings

    print_settings(json=json)


@app.default
def refuse(*words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]) -> None:
    """Show help, or refuse a stage that does not exist."""
    from tandem.errors import UsageError

    if not words:
        app.help_print()
    else:
        raise UsageError(f"train {words[0]}: there is no such stage; use {', '.join(STAGES)}")


def train(stage: StageName, what: str, options: Options) -> int:
    """Do one stage of whatever was asked for, or show the plan, or what it could fail of."""
    import os

    from tandem.errors import UsageError
    from tandem.training.settings.choice import choose
    from tandem.training.settings.config import Recipe

    if options.data_only and (options.plan or options.json) and not options.check:
        raise UsageError("--plan and --json show the plan and prepare nothing; give them without --data-only")
    given = choose(what, stage, environment=os.environ, options=_values(options), root=options.out)
    if options.check:
        return _check(given, stage, options)
    if options.plan or options.json:
        from tandem.cli.training_plan import print_plan

        print_plan(given, options.device, json=options.json)
        return 0
    with _shown() as progress:
        if isinstance(given, Recipe):
            assert options.out is not None, "a recipe for a new model was chosen with its folder"
            result = _from_nothing(given, stage, options, Path(options.out), progress)
        else:
            from tandem.training.named.run import run_named

            result = run_named(
                given, progress, device=options.device, fresh=options.fresh, data_only=options.data_only
            )  # fmt: skip
    print(result)
    return 0


def _check(given: Recipe | Resolved, stage: StageName, options: Options) -> int:
    import os

    from tandem.cli.training_plan import print_findings
    from tandem.errors import UsageError
    from tandem.training.job import Job
    from tandem.training.preflight.named import check_named
    from tandem.training.preflight.recipe import check_recipe
    from tandem.training.settings.config import Recipe

    if options.plan or options.data_only:
        other = "--plan" if options.plan else "--data-only"
        raise UsageError(f"--check looks at the whole run and shows what it finds; give it without {other}")
    if isinstance(given, Recipe):
        assert options.out is not None, "a recipe for a new model was chosen with its folder"
        job = Job(recipe=given, directory=Path(options.out), stage="pretrain" if stage == "pretrain" else "sft")
        resume = options.resume is not False
        found = check_recipe(job, options.device, os.environ, fresh=options.fresh, resume=resume)
    else:
        found = check_named(given, options.device, os.environ, fresh=options.fresh)
    return print_findings(found, json=options.json)


def _from_nothing(given: Recipe, stage: StageName, options: Options, out: Path, progress: Progress) -> Path:
    from tandem.errors import UsageError
    from tandem.training.pipeline import prepare_and_pretrain, prepare_and_train

    if options.data_only:
        raise UsageError(f"recipe {given.name}: makes a new model, and --data-only is for named ones; leave it out")
    do = prepare_and_pretrain if stage == "pretrain" else prepare_and_train
    resume = options.resume is not False
    return do(given, out, progress, fresh=options.fresh, resume=resume, device=options.device)


def _values(options: Options) -> Values:
    from tandem.training.settings.resolve import assignments
    from tandem.training.settings.values import Value

    paths = ("data", "weights", "tokenizer", "prepared")
    values = {f"paths.{name}": Value(path, f"--{name}") for name in paths if (path := getattr(options, name))}
    if options.resume is not None:
        values["resume.auto"] = Value(options.resume, "--resume" if options.resume else "--no-resume")
    if options.ranks is not None:
        values["launch.ranks"] = Value(options.ranks, "--ranks")
    return values | assignments(options.set)


def _shown() -> AbstractContextManager[Progress]:
    """Progress goes to stderr, so that stdout holds the model's folder alone."""
    from rich.console import Console

    from tandem.cli.training_bar import show_training

    return show_training(Console(stderr=True))
