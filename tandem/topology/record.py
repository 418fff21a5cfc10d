"""Frozen typed records whose validation errors leave as one-line TopologyErrors.

Pydantic's own ValidationError never gets past this file: callers see a message with the field, its value and what to
write instead. The message tells the first fault, `ShapeError.faults` all of them.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from tandem.errors import TopologyError
from tandem.topology.plain_data import written

FIXES = {
    "string_type": "write text between quotes",
    "string_too_short": "write at least one character",
    "string_too_long": "write at most {max_length} characters",
    "model_type": "write keys and values between {{ and }}",
    "tuple_type": "write a list between [ and ]",
    "dict_type": "write keys and values between {{ and }}",
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
    "int_from_float": "write a whole number",
    "greater_than_equal": "write a number of at least {ge}",
    "less_than_equal": "write a number of at most {le}",
    "literal_error": "write {expected}",
    "enum": "write {expected}",
}
"""What to write instead, by pydantic's name of the fault."""

KEY = "[key]"
"""What pydantic puts behind a key that is at fault itself."""


@dataclass(frozen=True)
class Fault:
    """A field that is not what it should be."""

    location: tuple[int | str, ...]
    """Such as `("instances", 1, "port")`; empty for the whole."""
    problem: str
    fix: str

    @property
    def path(self) -> str:
        """JSON path of the field in its file, such as `$.instances[1].port`."""
        return written(self.location)

    def __str__(self) -> str:
        return f"{self.path.removeprefix('$').removeprefix('.')} {self.problem}; {self.fix}".lstrip()


class ShapeError(TopologyError):
    """Fields of a record are not what they should be.

    Args:
        faults: All of them.
        source: The file, where there is one.
    """

    def __init__(self, faults: tuple[Fault, ...], source: str | None = None) -> None:
        first = faults[0]
        super().__init__(str(first) if source is None else f"{source}: {first.path}: {first.problem}; {first.fix}")
        self.faults = faults


class Record(BaseModel):
    """Base of every structure in a topology file or a rank table.

    Raises:
        ShapeError: From the constructor, when a field is missing, unknown or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # a type checker keeps the typed constructor that pydantic derives from the fields

        def __init__(self, /, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise ShapeError(tuple(faults_of(error))) from error


def like(pattern: str, fix: str) -> AfterValidator:
    """Text that a pattern describes, with plain words for who writes another."""
    compiled = re.compile(pattern)

    def checked(text: str) -> str:
        if not compiled.fullmatch(text):
            raise misfit(fix)
        return text

    return AfterValidator(checked)


def misfit(fix: str) -> PydanticCustomError:
    """For validators: the value is none that the field can have."""
    return PydanticCustomError("misfit", "{fix}", {"fix": fix})


def faults_of(error: ValidationError, outer: tuple[int | str, ...] = ()) -> Iterator[Fault]:
    """Every fault, those of records inside records at their places in the whole."""
    for details in error.errors(include_url=False):
        location = (*outer, *(part for part in details["loc"] if part != KEY))
        inner = details.get("ctx", {}).get("error")
        if isinstance(inner, ShapeError) and isinstance(inner.__cause__, ValidationError):
            yield from faults_of(inner.__cause__, location)
        else:
            yield fault(location, details)


def fault(location: tuple[int | str, ...], details: ErrorDetails) -> Fault:
    """One fault in our words."""
    problem = f"is {reprlib.repr(details['input'])}"
    context: Mapping[str, Any] = details.get("ctx", {})
    match details["type"]:
        case "missing":
            return Fault(location, "is missing", "add it")
        case "extra_forbidden":
            return Fault(location, "is not a known field", "remove it or mend its spelling")
        case "value_error":
            reason, _, fix = str(context["error"]).rpartition("; ")
            return Fault(location, reason, fix)
        case "misfit":
            return Fault(location, problem, context["fix"])
        case kind:
            return Fault(location, problem, FIXES.get(kind, "mend it ({what})").format(what=details["msg"], **context))
