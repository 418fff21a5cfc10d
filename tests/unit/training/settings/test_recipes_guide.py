"""docs/recipes.md says what the recipes and variables say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tandem.catalogue.drawing import short_layout
from tandem.catalogue.models import MODELS
from tandem.training.settings.named_recipe import named_recipes
from tandem.training.settings.recommended import recommended
from tandem.training.settings.variables import STAGES, VARIABLES

GUIDE = (Path(__file__).parents[4] / "docs" / "recipes.md").read_text()


def variables() -> Iterator[str]:
    for variable in VARIABLES.values():
        yield f"| `{variable.name}` | `{variable.setting}` | {variable.meaning} | {variable.default} |"
    for name, meaning in STAGES.items():
        yield f"| `{name}` | `stage` | {meaning} | the command's |"


def models() -> Iterator[str]:
    for name in named_recipes():
        of, layout = recommended(name), short_layout(MODELS[name].layouts[0])
        lora = f"{of.micro_batch} / {of.lora_micro_batch}"
        yield f"| `{name}` | {of.seq_length} | {lora} | {of.global_batch} | {of.lr:g} | {of.min_lr:g} | {layout} |"


def test_the_tables_are_the_code() -> None:
    assert re.findall(r"^\| `[A-Za-z_0-9]+` \| `.+\|$", GUIDE, re.M) == list(variables())
    assert re.findall(r"^\| `[a-z0-9.]+-[0-9a-z.]+` \|.+\|$", GUIDE, re.M) == list(models())
