"""docs/models.md says what the catalogue says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tandem.catalogue.costs import costs_of
from tandem.catalogue.drawing import short_layout
from tandem.catalogue.models import MODELS
from tandem.model.families import FAMILIES

GUIDE = (Path(__file__).parents[3] / "docs" / "models.md").read_text()


def expected() -> Iterator[str]:
    for model in MODELS.values():
        layout = short_layout(model.layouts[0]) if model.layouts else "-"
        billions = f"{costs_of(model.config).parameters / 1e9:.2f} B"
        link = f"[{model.repository}]({model.link})"
        yield f"| `{model.name}` | {link} | {billions} | {model.config.max_position} | {layout} |"


def test_the_table_is_the_catalogue() -> None:
    assert re.findall(r"^\| `.+/.+\|$", GUIDE, re.M) == list(expected())


def test_every_family_is_named() -> None:
    for family in FAMILIES.values():
        for architecture in family.architectures:
            assert f"`{architecture}`" in GUIDE
