"""Reads recipes: a built-in one by name, or a YAML file by path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from tandem.errors import RecipeError
from tandem.training.config import Recipe, build_recipe


def built_in_recipes() -> list[str]:
    """Names of the recipes that come with tandem."""
    folder = resources.files("tandem.catalogue") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_recipe(name_or_path: str) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: A built-in name such as `quickstart`, or a path that ends in .yaml or .yml or holds a slash.

    Raises:
        RecipeError: There is no such recipe, it is no YAML, or a field is wrong.
    """
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return _parse(_read(Path(name_or_path)), name_or_path)
    if name_or_path not in (known := built_in_recipes()):
        raise RecipeError(f"recipe {name_or_path}: is not built in; use {', '.join(known)} or a path to a .yaml file")
    file = resources.files("tandem.catalogue") / "recipes" / f"{name_or_path}.yaml"
    return _parse(file.read_text(encoding="utf-8"), f"recipe {name_or_path}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: cannot be read ({error}); give a YAML file or one of {built_in_recipes()}"
        ) from None


def _parse(text: str, where: str) -> Recipe:
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: is no YAML ({' '.join(str(error).split())}); mend that line") from None
    return build_recipe(fields, where)
