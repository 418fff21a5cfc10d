"""`tandem model`: the models that have names, what a model folder holds, fetching one, and random ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table

    from tandem.catalogue.named import NamedModel

app = cyclopts.App(name="model", help="List, show and fetch models, check a folder, make random ones.")


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
        _print_json([row_fields(model) for model in MODELS.values()])
        return
    _print(draw_models(MODELS.values()), folded=False)
    print("* not stated by the documents; `tandem model show NAME` says where it comes from")


@app.command
def show(model: str, /, *, context: int | None = None, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Show a named model, or a model folder and whether its weights and tokenizer are whole.

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


@app.command
def fetch(model: str, /, *, revision: str | None = None, to: Path | None = None) -> int:
    """Download a model: configuration, tokenizer, and weights in one form; no code.

    Args:
        model: A name of `tandem model list`, or ORGANISATION/MODEL on the Hugging Face hub.
        revision: Branch, tag or commit. Default: the one the name is pinned to, else main.
        to: Folder for it. Default: the Hugging Face cache, where other commands find it by its name.
    """
    from tandem.catalogue.download import fetch as fetch_source
    from tandem.catalogue.models import find_model
    from tandem.catalogue.source import Source

    source = Source.of(model, revision) or Source.of(find_model(model).name, revision)
    assert source is not None
    print(fetch_source(source, to))
    return 0


@app.command
def random(
    model: str,
    out: Path,
    /,
    *,
    tiny: Annotated[bool, Parameter(negative="")] = False,
    shape: str | None = None,
    full: Annotated[bool, Parameter(negative="")] = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    fp8: Annotated[bool, Parameter(negative="")] = False,
    seed: int = 0,
) -> int:
    """Write a model folder of the same architecture with random weights and a small working tokenizer.

    Args:
        model: A name of `tandem model list`.
        out: Folder to write; must not exist.
        tiny: About a million parameters; everything that is special about the model stays.
        shape: The same with sizes of your choice, as in layers=8,hidden=256.
        full: The model's real size.
        dtype: Type of the weights; auto takes the published one, or bfloat16 for quantised models.
        fp8: Write the matrices in fp8 blocks, as DeepSeek publishes them; the rest in dtype.
        seed: The same one gives the same folder.
    """
    from tandem.catalogue.models import find_model
    from tandem.catalogue.shrink import chosen_config

    named = find_model(model)
    config = chosen_config(named.config, tiny=tiny, shape=shape, full=full)
    from tandem.model.random_folder import native_dtype, write_random_folder

    wanted = native_dtype(named) if dtype == "auto" else dtype
    write_random_folder(config, named.tokenizer, out, dtype=wanted, seed=seed, fp8=fp8)
    print(out)
    return 0


def _show_named(model: NamedModel, context: int | None, json: bool) -> int:
    from tandem.catalogue.description import model_fields
    from tandem.catalogue.drawing import draw_lines, model_lines

    if json:
        _print_json(model_fields(model, context))
    else:
        _print(draw_lines(model_lines(model, context)), folded=True)
    return 0


def _show_folder(folder: Path, context: int | None, json: bool) -> int:
    from tandem.catalogue.drawing import config_lines, draw_lines
    from tandem.model.examination import examine
    from tandem.model.verdict import verdict_lines

    found = examine(folder)
    if json:
        _print_json(found.as_json(context) | {"folder": str(folder)})
    else:
        lines = [("folder", str(folder)), *config_lines(found.config, context), *verdict_lines(found)]
        _print(draw_lines(lines), folded=True)
    return 3 if found.faults else 0


def _print_json(value: Any) -> None:
    from json import dumps

    print(dumps(value, indent=2, ensure_ascii=False))


def _print(table: Table, *, folded: bool) -> None:
    """`folded` lets a terminal fold what is too wide; a file or a pipe gets whole lines."""
    from rich.console import Console

    console = Console()
    if folded and console.is_terminal:
        console.print(table)
        return
    console.width = Console(width=1000).measure(table).maximum
    with console.capture() as drawn:
        console.print(table)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))
