"""`Recommended`: the numbers of a named model's recipe in one line, for lists."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.catalogue.models import MODELS
from tandem.training.settings.named_recipe import recipe_values


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """What stages share, and the micro-batch, in which they differ."""

    seq_length: int
    micro_batch: int
    lora_micro_batch: int
    global_batch: int
    lr: float
    min_lr: float


def recommended(name: str) -> Recommended:
    """The numbers for a model that has a recipe."""
    full, lora = (recipe_values(MODELS[name], stage) for stage in ("sft", "lora"))
    shared = {field: full[f"training.{field}"].value for field in Recommended.__annotations__ if "lora" not in field}
    return Recommended(**shared, lora_micro_batch=lora["training.micro_batch"].value)
