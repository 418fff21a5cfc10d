"""JSON and YAML texts as plain data, the one door through which files come in.

Whatever a parser would say in an exception of its own, and whatever would make trouble only later, is refused here in
one line with its place: keys that stand twice, numbers that are none, text that cannot be written again, nesting
without end. Which keys there should be is checked by whoever asks.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from typing import Any

import yaml

from tandem.errors import TopologyError

DEEPEST = 100
"""Objects and lists within each other; tables have eight, and what writes them again gives up at some 250."""
LONGEST_INTEGER = 600
"""Digits. Python may be set to print no more than 640."""
LONGEST_PATH = 120
"""Characters."""
NO_VALUE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What PyYAML's constructors raise for `2001-99-99`, `!!bool x`, `!!int ""` and their like."""


def json_object(text: str, source: str) -> dict[str, Any]:
    """The object at the top of a JSON text; `source` names it in error messages.

    Raises:
        TopologyError: Naming the line of a syntax error, or the place of what no table may hold.
    """
    try:
        data = json.loads(text, object_pairs_hook=without_loss, parse_int=integer)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise TopologyError(f"{source}: {place}: {error.msg}; mend the JSON syntax") from None
    except RecursionError:
        raise TopologyError(f"{source}: is nested too deeply to be a rank table; check the file") from None
    if not isinstance(data, dict):
        raise TopologyError(f"{source}: is not a JSON object; a rank table starts with {{")
    require_plain(data, source)
    return data


def yaml_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping at the top of a YAML text; `source` names it in error messages.

    Raises:
        TopologyError: Naming the line of a syntax error, or the place of what no topology may hold.
    """
    try:
        data = Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise TopologyError(f"{source}: {place_of(error)}; mend the YAML there") from None
    except RecursionError:
        raise TopologyError(f"{source}: is nested too deeply to be a topology; check the file") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise TopologyError(f"{source}: is not a mapping; write `model:` and `instances:` at its top")
    require_plain(data, source)
    return data


class Repeated(dict[str, Any]):
    """A JSON object in which a key stood twice; where that was, only `require_plain` can say."""

    key = ""


def without_loss(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that does not hide that a key stood in it twice."""
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    refused = Repeated(fields)
    refused.key = Counter(key for key, _ in pairs).most_common(1)[0][0]
    return refused


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with a place for every error and none of two equal keys lost."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it stands in the text, before what `<<` adds to it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                problem = f"key {reprlib.repr(key.value)} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        try:
            return super().construct_object(node, deep)
        except NO_VALUE:
            problem = f"the value is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def integer(digits: str) -> float:
    """An integer of a JSON text; one that Python would not print again counts as infinite."""
    return int(digits) if len(digits) <= LONGEST_INTEGER else math.inf


def require_plain(data: Any, source: str) -> None:
    """Refuse what JSON or YAML may hold but no table can mean.

    Raises:
        TopologyError: Naming the place.
    """
    seen: set[int] = set()  # YAML's aliases may lead to one list by a million ways, or back to itself
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(data, ())]
    while waiting:
        value, path = waiting.pop()
        if problem := trouble(value, len(path) + 1):
            raise TopologyError(f"{source}: {written(path)}: {problem}")
        if isinstance(value, dict | list) and id(value) not in seen:
            seen.add(id(value))
            inside = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(one, (*path, key)) for key, one in reversed(list(inside))]


def trouble(value: Any, depth: int) -> str | None:
    """What is wrong with a value, looked at without what is inside it, and what to do."""
    match value:
        case Repeated(key=key):
            return f"key {reprlib.repr(key)} stands twice; keep one of the two"
        case dict() | list() if depth > DEEPEST:
            return f"is nested deeper than {DEEPEST} levels; check the file"
        case dict() if strange := [key for key in value if not isinstance(key, str) or not encodable(key)]:
            return f"has the key {reprlib.repr(strange[0])}, which is no Unicode text; put other text between quotes"
        case str() if not encodable(value):
            return "is no Unicode text but has half of a surrogate pair; write it anew"
        case float() if not math.isfinite(value):
            return "is no finite number, or too large; write another, or text between quotes"
        case int() if value.bit_length() > 3 * LONGEST_INTEGER:
            return "is too large a number; write another, or text between quotes"
        case None | str() | int() | float() | list() | dict():
            return None
    return f"is a {type(value).__name__}; write text between quotes"


def written(path: tuple[int | str, ...]) -> str:
    """`("x", 1, "y")` as `$.x[1].y`, cut where it does not fit into one line."""
    steps = (f".{step}" if isinstance(step, str) and step.isprintable() else f"[{step!r}]" for step in path)
    text = f"${''.join(steps)}"
    return text if len(text) <= LONGEST_PATH else f"{text[:LONGEST_PATH]}..."


def encodable(text: str) -> bool:
    """Whether text can be written as UTF-8; the halves of surrogate pairs cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def place_of(error: yaml.YAMLError) -> str:
    """Line, column and problem of a YAML error, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(str(error.problem).split())}"
    return " ".join(str(error).split())
