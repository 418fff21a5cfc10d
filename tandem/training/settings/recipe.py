"""Reads the files of recipes: a built-in one by name, or a YAML file by path; `choice.py` checks what is in them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from tandem.errors import RecipeError


def built_in_recipes() -> list[str]:
    """Names of the recipes that come with tandem."""
    folder = resources.files("tandem.catalogue") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def is_path(name_or_path: str) -> bool:
    """Whether it names a file and nothing built in."""
    return name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path


def read_fields(name_or_path: str) -> dict[str, Any]:
    """The fields of a recipe file, unchecked.

    Args:
        name_or_path: A built-in name such as `quickstart`, or a path that ends in .yaml or .yml or holds a slash.

    Raises:
        RecipeError: The file cannot be read, or is no YAML with fields.
    """
    if is_path(name_or_path):
        return _parse(_read(Path(name_or_path)), name_or_path)
    file = resources.files("tandem.catalogue") / "recipes" / f"{name_or_path}.yaml"
    return _parse(file.read_text(encoding="utf-8"), f"recipe {name_or_path}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: cannot be read ({error}); give a YAML file or one of {built_in_recipes()}"
        ) from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers that are none, or too deep
        raise RecipeError(f"{where}: is no YAML ({' '.join(str(error).split())}); mend that line") from None
    if not isinstance(fields, dict):
        raise RecipeError(f"{where}: holds no fields; start from a recipe that is built in")
    return fields
