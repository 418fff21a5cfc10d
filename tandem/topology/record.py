"""Frozen typed records whose validation errors leave as one-line TopologyErrors.

Pydantic's own ValidationError never gets past this file: callers see a message with the field, its value and
what it should be. Only the first problem is told; the next run tells the next one.
"""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tandem.errors import TopologyError


class Record(BaseModel):
    """Base of every structure in a topology file or a rank table.

    Raises:
        TopologyError: From the constructor, when a field is missing, unknown or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # a type checker keeps the typed constructor that pydantic derives from the fields

        def __init__(self, /, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise TopologyError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """The first problem of a validation error in one line: field, value, what it should be."""
    location, details = innermost(error)
    path = dotted(location)
    match details["type"]:
        case "missing":
            return f"{path} is missing; add it"
        case "extra_forbidden":
            return f"{path} is not a known field; remove it or mend its spelling"
        case "value_error":
            reason = str(details["ctx"]["error"])
            return f"{path}: {reason}" if path else reason
        case _:
            wanted = details["msg"].replace("Input should", "it should").replace("String should", "it should")
            return f"{path} is {reprlib.repr(details['input'])}; {wanted}"


def innermost(error: ValidationError) -> tuple[tuple[int | str, ...], ErrorDetails]:
    """Where the first problem lies and what it is, seen through the errors of records inside records."""
    details = error.errors(include_url=False)[0]
    inner = details.get("ctx", {}).get("error")
    if isinstance(inner, TopologyError) and isinstance(inner.__cause__, ValidationError):
        location, deepest = innermost(inner.__cause__)
        return details["loc"] + location, deepest
    return details["loc"], details


def dotted(location: tuple[int | str, ...]) -> str:
    """`("instances", 1, "port")` as `instances[1].port`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
