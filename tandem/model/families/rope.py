"""Rotary parameters as Hugging Face spells them, read and written.

Source: transformers 5.23, `modeling_rope_utils.py`. Both its spelling (`rope_parameters`) and the older one
(`rope_theta`, `rope_scaling`) are read; the older one is written, because every reader knows it.
"""

from __future__ import annotations

from typing import Any

from tandem.catalogue.position import DynamicNTK, LinearScaling, Llama3Scaling, Rope, Scaling, Yarn
from tandem.catalogue.require import require
from tandem.errors import ModelFolderError
from tandem.model.families.fields import Fields


def read_rope(
    fields: Fields,
    head_dim: int,
    max_position: int,
    *,
    theta: float = 10000.0,
    rotated: float = 1.0,
) -> Rope:
    """The rotary positions a `config.json` asks for.

    Args:
        fields: The file.
        head_dim: Dimensions of each head.
        max_position: Where a scaling leaves out what it was trained on.
        theta: The family's own, where the file has none.
        rotated: Share of a head's dimensions that the family rotates where the file does not say; a family that
            rotates all of them is refused another share.

    Raises:
        ModelFolderError: The type is unknown, a parameter is wrong, or the two spellings contradict each other.
    """
    spelled = _spelled(fields, max_position)
    return Rope(
        theta=_inside(spelled, fields, "rope_theta").number("rope_theta", theta),
        dims=int(head_dim * _share(_inside(spelled, fields, "partial_rotary_factor"), rotated)),
        scaling=_read_scaling(spelled, max_position),
    )


def _spelled(fields: Fields, max_position: int) -> Fields:
    """The parameters of whichever spelling is there."""
    new, old = fields.part("rope_parameters"), fields.part("rope_scaling")
    if new.holds_parts():
        raise ModelFolderError(f"{new.where}: one set for each kind of layer is not supported; supported: one for all")
    if not fields.get("rope_parameters"):
        return old
    if fields.get("rope_scaling") and _read_scaling(new, max_position) != _read_scaling(old, max_position):
        raise ModelFolderError(f"{fields.where}: rope_parameters and rope_scaling contradict each other; keep one")
    return new


def _inside(spelled: Fields, fields: Fields, name: str) -> Fields:
    """Where a parameter stands: among the others or beside them."""
    return fields if spelled.get(name) is None else spelled


def _share(fields: Fields, rotated: float) -> float:
    share = fields.number("partial_rotary_factor", rotated)
    if share > 1 or (rotated == 1 and share != 1):
        raise ModelFolderError(
            f"{fields.where}: partial_rotary_factor = {share} is not supported; supported: {rotated}"
        )
    return share


def _read_scaling(fields: Fields, max_position: int) -> Scaling | None:
    match kind := fields.get("rope_type") or fields.get("type") or "default":
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
    raise ModelFolderError(f"{fields.where}: rope type {kind!r:.40} is not supported; supported: {known}")


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


def write_rope(rope: Rope, max_position: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`.

    Raises:
        ConfigurationError: A base grows beyond another length than the model's own, which no field can say.
    """
    if isinstance(rope.scaling, DynamicNTK):
        trained = rope.scaling.trained
        require(trained == max_position, f"a dynamic base trained on {trained} tokens, of {max_position} at most")
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
