"""`Values`: settings by their dotted names, each with where it came from; later ones take the place of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Value:
    """One setting."""

    value: Any
    origin: str
    """Where it came from, for people."""


Values = dict[str, Value]
"""`training.lr` -> 2.5e-5 from somewhere."""


def flat(fields: Mapping[str, Any], origin: str, prefix: str = "") -> Values:
    """Nested fields as values of one origin."""
    values: Values = {}
    for name, value in fields.items():
        inner = flat(value, origin, f"{prefix}{name}.") if isinstance(value, Mapping) else {}
        values |= inner or {f"{prefix}{name}": Value(value, origin)}
    return values


def nested(values: Values) -> dict[str, Any]:
    """The fields of values, without their origins.

    What is no section though others lie in it stays alone, so that it is refused by name when the fields are checked.
    """
    fields: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner: Any = fields
        for section in sections:
            inner = inner.setdefault(section, {}) if isinstance(inner, dict) else inner
        if isinstance(inner, dict):
            inner[last] = value.value
    return fields
