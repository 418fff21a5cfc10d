"""What is wrong with a setting, in our words: its name, its value, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

FIXES: Final[Mapping[str, str]] = {
    "missing": "is missing; add it",
    "extra_forbidden": "is not known; remove it",
    "value_error": "{error}",
    "greater_than": "write a number above {gt:g}",
    "greater_than_equal": "write a number of at least {ge:g}",
    "less_than": "write a number below {lt:g}",
    "less_than_equal": "write a number of at most {le:g}",
    "finite_number": "write a number that has an end",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "int_parsing": "write a whole number",
    "int_parsing_size": "write a smaller number",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "string_type": "write text, in quotes where it looks like a number",
    "string_too_short": "write at least {min_length} character(s)",
    "string_pattern_mismatch": "write text of the form {pattern}",
    "literal_error": "write {expected}",
    "path_type": "write a path",
    "tuple_type": "write a list",
    "model_type": "write fields below it, as `field: value`",
    "model_attributes_type": "write fields below it, as `field: value`",
}
"""By pydantic's name of the fault."""


def describe(fault: Mapping[str, Any]) -> str:
    """One of pydantic's errors in a line: the field, its value, what is wrong and the fix."""
    field = ".".join(str(part) for part in fault["loc"]) or "the recipe"
    given = "" if isinstance(fault["input"], dict) else f" = {fault['input']!r}"
    return f"{field}{given}: {FIXES.get(fault['type'], 'mend it ({msg})').format(**fault, **fault.get('ctx', {}))}"
