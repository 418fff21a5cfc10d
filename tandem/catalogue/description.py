"""Configurations and named models as plain JSON values, for `--json` and whoever reads it.

A part that comes in kinds says which it is under `kind`.
"""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import Any

from tandem.catalogue.config import GQA, ModelConfig
from tandem.catalogue.costs import costs_of
from tandem.catalogue.named import NamedModel


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """A configuration, every field by its own name."""
    return {field.name: _value(getattr(config, field.name)) for field in fields(config)}


def _value(value: Any) -> Any:
    if not is_dataclass(value):
        return value
    return {"kind": type(value).__name__} | {field.name: _value(getattr(value, field.name)) for field in fields(value)}


def model_fields(model: NamedModel, context: int | None = None) -> dict[str, Any]:
    """Everything about a named model, with what it costs at `context` tokens."""
    plain = {field.name: getattr(model, field.name) for field in fields(model)}
    return plain | {
        "config": config_fields(model.config),
        "layouts": [asdict(layout) for layout in model.layouts],
        "minimum_cards": [asdict(least) for least in model.minimum_cards],
        "download": model.download,
        "costs": asdict(costs_of(model.config, context)),
    }


def row_fields(model: NamedModel) -> dict[str, Any]:
    """What a list shows of a named model."""
    config, costs = model.config, costs_of(model.config)
    return {
        "name": model.name,
        "repository": model.repository,
        "revision": model.revision,
        "parameters": costs.parameters,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "heads": config.attention.heads,
        "kv_heads": config.attention.kv_heads if isinstance(config.attention, GQA) else None,
        "context": config.max_position,
        "bfloat16_bytes": costs.weight_bytes["bfloat16"],
        "kv_bytes_per_token": costs.kv_bytes_per_token,
        "layout": asdict(model.layouts[0]) if model.layouts else None,
    }
