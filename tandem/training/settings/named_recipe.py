"""What is recommended for a named model: `catalogue/recipes/models`, one file for each family, and the catalogue."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml

from tandem.catalogue.layout import ParallelLayout
from tandem.catalogue.models import MODELS
from tandem.catalogue.named import NamedModel
from tandem.errors import RecipeError
from tandem.training.settings.run import StageName
from tandem.training.settings.values import Values, flat

BASE = "all"
"""The file that all families stand on."""


def named_recipes() -> list[str]:
    """The models that have a recipe, in the catalogue's order."""
    known = {name for file in _files().values() for name in file.get("sizes", {})}
    return [name for name in MODELS if name in known]


def recipe_values(model: NamedModel, stage: StageName) -> Values:
    """What is recommended for one stage of a model, layout excepted.

    Raises:
        RecipeError: The model has no recipe.
    """
    family = next((name for name, file in _files().items() if model.name in file.get("sizes", {})), None)
    if family is None:
        raise RecipeError(f"model {model.name}: has no recipe; these have one: {', '.join(named_recipes())}")
    size = dict(_files()[family]["sizes"][model.name])
    own = {"stages": size.pop("stages", {}), "common": size}
    parts = {BASE: _files()[BASE], family: _files()[family], f"{family}, {model.name}": own}
    values: Values = {}
    for name, part in parts.items():
        values |= flat(part.get("common", {}), f"recipe {name}")
        values |= flat(part.get("stages", {}).get(stage, {}), f"recipe {name}, {stage}")
    return values


def layout_values(model: NamedModel, seq_length: int) -> Values:
    """The recommended layout for samples of this length; empty where nothing is known.

    Longer samples than any layout was made for get that of the longest.
    """
    if not model.layouts:
        return {}
    longest = max(model.layouts, key=lambda layout: layout.seq_length)
    layout = next((layout for layout in model.layouts if layout.seq_length >= seq_length), longest)
    return flat({"layout": _sizes(layout)}, f"catalogue: {layout.basis}, for {layout.seq_length} tokens")


def _sizes(layout: ParallelLayout) -> dict[str, int]:
    return {"tp": layout.tp, "pp": layout.pp, "cp": layout.cp, "cards": layout.cards}


@cache
def _files() -> dict[str, dict[str, Any]]:
    folder = resources.files("tandem.catalogue") / "recipes" / "models"
    return {
        file.name.removesuffix(".yaml"): yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    }
