"""What `tandem train STAGE WHAT` means: a recipe that makes a model from nothing, or one stage of a named model."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tandem.errors import RecipeError
from tandem.storage.location import Location
from tandem.training.settings.config import Recipe, build_recipe
from tandem.training.settings.named_recipe import named_recipes
from tandem.training.settings.recipe import built_in_recipes, is_path, read_fields
from tandem.training.settings.resolve import Resolved, resolve
from tandem.training.settings.run import StageName
from tandem.training.settings.values import Values, flat, nested
from tandem.training.settings.variables import launch_values


def choose(
    what: str, stage: StageName, *, environment: Mapping[str, str], options: Values, root: str | Path | None
) -> Recipe | Resolved:
    """Read what was asked for.

    Args:
        what: A built-in recipe, a model's name, or a path to a .yaml file. In a file, `model` is either a model's name,
            with settings over its recipe beside it, or the shape of a new one.
        stage: What to do.
        environment: The process's environment variables; a recipe for a new model looks at those of the launch alone.
        options: What the command line set.
        root: Folder of the run, or location on an object store; a recipe for a new model needs a folder.

    Raises:
        RecipeError: There is no such recipe, or it cannot run so; all reasons are named.
    """
    fields: dict[str, Any] = {"model": what}
    if what in built_in_recipes() or is_path(what):
        fields = read_fields(what)
    if isinstance(fields.get("model"), str):
        name = str(fields.pop("model"))
        _require_known(name, what)
        return resolve(
            name, stage, file=fields, file_name=what, environment=environment, options=options, root=root or Path(),
        )  # fmt: skip
    where = what if is_path(what) else f"recipe {what}"
    launch = {name: value for name, value in options.items() if name.startswith("launch.")}
    values = flat(fields, where) | launch_values(environment) | launch
    others = {name: value for name, value in options.items() if name not in launch and name != "resume.auto"}
    return _from_nothing(build_recipe(nested(values), where), stage, others, root)


def _from_nothing(recipe: Recipe, stage: StageName, options: Values, root: str | Path | None) -> Recipe:
    if stage == "lora":
        raise RecipeError(f"recipe {recipe.name}: makes a new model and has no stage lora; use pretrain or sft")
    given = ", ".join(sorted({value.origin for value in options.values()}))
    if given:
        raise RecipeError(
            f"recipe {recipe.name}: makes a new model from its own data and takes no {given}; edit its file"
        )
    if root and Location.of(str(root)):
        raise RecipeError(
            f"recipe {recipe.name}: makes a new model in a folder; give --out one, and copy it with `tandem data sync`"
        )
    if root is None:
        raise RecipeError(f"recipe {recipe.name}: needs a folder for the run; give --out")
    return recipe


def _require_known(name: str, what: str) -> None:
    known = [*built_in_recipes(), *named_recipes()]
    if name.lower() in named_recipes():
        return
    where = f"{what}: model {name}" if name != what else f"recipe {name}"
    alike = get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(alike)}?" if alike else "use quickstart, or a model of `tandem train list`,"
    raise RecipeError(f"{where}: is not built in; {hint} or give a path to a .yaml file")
