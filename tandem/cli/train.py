"""`tandem train`: pretrain a model, fine-tune it on conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tandem.training.progress import Progress

STAGES = ("pretrain", "sft")

app = cyclopts.App(name="train", help="Train a model: pretrain, sft.")

Device = Literal["auto", "cpu", "cuda", "npu"]


@app.command
def pretrain(
    recipe: str,
    *,
    out: Path,
    resume: bool = True,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    device: Device = "cpu",
) -> None:
    """Train a new model: corpus, tokenizer, tokens, pretraining; the base model is OUT/pretrain/model.

    Args:
        recipe: A built-in recipe, such as quickstart, or a path to a .yaml file.
        out: Folder of the run; what is there from the same inputs is used again.
        resume: Go on from the latest checkpoint; else pretraining begins anew.
        fresh: Make everything in OUT anew, corpus and tokenizer too.
        device: What to train on.
    """
    from tandem.training.pipeline import prepare_and_pretrain
    from tandem.training.recipe import read_recipe

    resolved = read_recipe(recipe)
    with _shown() as progress:
        model = prepare_and_pretrain(resolved, out, progress, fresh=fresh, resume=resume, device=device)
    print(model)


@app.command
def sft(
    recipe: str,
    *,
    out: Path,
    resume: bool = True,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    device: Device = "cpu",
) -> None:
    """Fine-tune the base model of the same run on conversations; the result is OUT/sft/model.

    Stages before it that are not done yet are done first.

    Args:
        recipe: A built-in recipe, such as quickstart, or a path to a .yaml file.
        out: Folder of the run; what is there from the same inputs is used again.
        resume: Go on from the latest checkpoint; else fine-tuning begins anew.
        fresh: Make everything in OUT anew, the base model too.
        device: What to train on.
    """
    from tandem.training.pipeline import prepare_and_train
    from tandem.training.recipe import read_recipe

    resolved = read_recipe(recipe)
    with _shown() as progress:
        model = prepare_and_train(resolved, out, progress, fresh=fresh, resume=resume, device=device)
    print(model)


@app.default
def refuse(*words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]) -> None:
    """Show help, or refuse a stage that does not exist."""
    from tandem.errors import UsageError

    if not words:
        app.help_print()
    else:
        raise UsageError(f"train {words[0]}: there is no such stage; use {' or '.join(STAGES)}")


def _shown() -> AbstractContextManager[Progress]:
    """Progress goes to stderr, so that stdout holds the model's folder alone."""
    from rich.console import Console

    from tandem.cli.training_bar import show_training

    return show_training(Console(stderr=True))
