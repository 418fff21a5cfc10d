"""Rotary parameters as Hugging Face spells them, read and written.

Source: transformers 5.23, `modeling_rope_utils.py`. Both its spelling (`rope_parameters`) and the older one
(`rope_theta`, `rope_scaling`) are read; the older one is written, because every reader knows it.
"""

from __future__ import annotations

from typing import Any

from tandem.catalogue.position import DynamicNTK, LinearScaling, Llama3Scaling, Rope, Scaling, Yarn
from tandem.errors import ModelFolderError
from tandem.model.families.fields import Fields


def read_rope(fields: Fields, dims: int, max_position: int, *, interleaved: bool = False) -> Rope:
    """The rotary positions a `config.json` asks for.

    Args:
        fields: The file.
        dims: Rotated dimensions of each head.
        max_position: Where a scaling leaves out what it was trained on.
        interleaved: Whether pairs are neighbours.

    Raises:
        ModelFolderError: The type is unknown or a parameter is wrong.
    """
    new, old = fields.part("rope_parameters"), fields.part("rope_scaling")
    kind = new.get("rope_type") or old.get("rope_type") or old.get("type") or "default"
    scaling = _read_scaling(kind, new if new.get("rope_type") else old, max_position)
    theta = (new if new.get("rope_theta") is not None else fields).number("rope_theta", 10000.0)
    return Rope(theta=theta, dims=dims, interleaved=interleaved, scaling=scaling)


def _read_scaling(kind: object, fields: Fields, max_position: int) -> Scaling | None:
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=fields.number("factor"))
        case "dynamic":
            return DynamicNTK(factor=fields.number("factor"), trained=max_position)
        case "llama3":
            return Llama3Scaling(
                factor=fields.number("factor"),
                low=fields.number("low_freq_factor"),
                high=fields.number("high_freq_factor"),
                trained=fields.size("original_max_position_embeddings"),
            )
        case "yarn":
            return _read_yarn(fields, max_position)
    known = "default, linear, dynamic, llama3, yarn"
    raise ModelFolderError(f"{fields.where}: rope type {kind!r} is not supported; supported: {known}")


def _read_yarn(fields: Fields, max_position: int) -> Yarn:
    def optional(name: str) -> float | None:
        # 0 is how some folders write "none".
        return fields.number(name) if fields.get(name) else None

    trained = fields.size("original_max_position_embeddings", max_position)
    return Yarn(
        factor=fields.number("factor", max_position / trained),
        trained=trained,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        mscale=optional("mscale"),
        mscale_all_dim=optional("mscale_all_dim"),
        attention_factor=optional("attention_factor"),
        truncate=fields.flag("truncate", True),
    )


def write_rope(rope: Rope) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`."""
    return {"rope_theta": rope.theta, "rope_scaling": _write_scaling(rope.scaling)}


def _write_scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    match scaling:
        case LinearScaling():
            return _named("linear", {"factor": scaling.factor})
        case DynamicNTK():
            return _named("dynamic", {"factor": scaling.factor})
        case Llama3Scaling():
            return _named(
                "llama3",
                {
                    "factor": scaling.factor,
                    "low_freq_factor": scaling.low,
                    "high_freq_factor": scaling.high,
                    "original_max_position_embeddings": scaling.trained,
                },
            )
        case Yarn():
            return _write_yarn(scaling)
    assert scaling is None, f"{scaling} belongs to a family with fields of its own"
    return None


def _write_yarn(yarn: Yarn) -> dict[str, Any]:
    optional = {name: getattr(yarn, name) for name in ("mscale", "mscale_all_dim", "attention_factor")}
    return _named(
        "yarn",
        {
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.trained,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            **{name: value for name, value in optional.items() if value is not None},
            **({} if yarn.truncate else {"truncate": False}),
        },
    )


def _named(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    # Readers from before 2024 look for `type`.
    return {"rope_type": kind, "type": kind, **fields}
