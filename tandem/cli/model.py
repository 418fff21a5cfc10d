"""`tandem model`: the models that have names, and what a model folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table

    from tandem.catalogue.named import NamedModel

app = cyclopts.App(name="model", help="List and show models, and make random ones.")


@app.command(name="list")
def list_models(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the models that have names: size, memory, recommended cards.

    Args:
        json: Print them as JSON.
    """
    from tandem.catalogue.description import row_fields
    from tandem.catalogue.drawing import draw_models
    from tandem.catalogue.models import MODELS

    if json:
        return _print_json([row_fields(model) for model in MODELS.values()])
    _print(draw_models(MODELS.values()), folded=False)
    print("* not stated by the documents; `tandem model show NAME` says where it comes from")
    return None


@app.command
def show(model: str, /, *, context: int | None = None, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Show a named model, or a model folder and whether every tensor is there.

    Args:
        model: A name of `tandem model list`, or a folder; a folder with faults gives exit code 3.
        context: Tokens to compute cache and operations for. Default: what the model was made for.
        json: Print as JSON.
    """
    from tandem.catalogue.costs import require_context
    from tandem.catalogue.models import find_model
    from tandem.catalogue.source import model_folder

    require_context(context)
    if Path(model).is_dir() or "/" in model:
        return _show_folder(model_folder(model), context, json)
    return _show_named(find_model(model), context, json)


def _show_named(model: NamedModel, context: int | None, json: bool) -> int:
    from tandem.catalogue.description import model_fields
    from tandem.catalogue.drawing import draw_lines, model_lines

    if json:
        _print_json(model_fields(model, context))
    else:
        _print(draw_lines(model_lines(model, context)), folded=True)
    return 0


def _show_folder(folder: Path, context: int | None, json: bool) -> int:
    from dataclasses import asdict

    from tandem.catalogue.costs import costs_of
    from tandem.catalogue.description import config_fields
    from tandem.catalogue.drawing import config_lines, draw_lines
    from tandem.model.families import read_config

    config = read_config(folder)
    if json:
        costs = asdict(costs_of(config, context))
        _print_json({"folder": str(folder), "config": config_fields(config), "costs": costs})
    else:
        _print(draw_lines([("folder", str(folder)), *config_lines(config, context)]), folded=True)
    return 0


def _print_json(value: Any) -> None:
    from json import dumps

    print(dumps(value, indent=2, ensure_ascii=False))


def _print(table: Table, *, folded: bool) -> None:
    """`folded` lets a terminal fold what is too wide; a file or a pipe gets whole lines."""
    from rich.console import Console

    console = Console()
    if not (folded and console.is_terminal):
        console.width = Console(width=1000).measure(table).maximum
    console.print(table)
