"""A Topology as a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tandem.errors import TopologyError
from tandem.topology.text_file import read_text, write_text
from tandem.topology.topology import Topology


def read_topology(path: Path) -> Topology:
    """The Topology of a YAML file.

    Raises:
        TopologyError: Naming the file, and the line of a syntax error or the field that breaks a rule.
    """
    return parse_topology(read_text(path), str(path))


def parse_topology(text: str, source: str) -> Topology:
    """The Topology of a YAML text; `source` names it in error messages.

    Raises:
        TopologyError: As `read_topology`.
    """
    fields = mapping(source, text)
    try:
        return Topology(**fields)
    except TopologyError as error:
        raise TopologyError(f"{source}: {error}") from error


def mapping(source: str, text: str) -> dict[str, Any]:
    """The mapping at the top of a YAML text; `source` names it in error messages."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TopologyError(f"{source}: {place_of(error)}; mend the YAML syntax") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise TopologyError(f"{source}: is not a mapping; write `model:` and `instances:` at its top")
    return data


def place_of(error: yaml.YAMLError) -> str:
    """Line, column and problem of a YAML syntax error, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def write_topology(topology: Topology, path: Path) -> None:
    """Write a Topology as YAML, whole or not at all.

    Raises:
        TopologyError: When the file cannot be written.
    """
    write_text(path, render_topology(topology))


def render_topology(topology: Topology) -> str:
    """The topology's YAML text."""
    # Not `allow_unicode`: PyYAML then writes U+0085 as it is and reads it back as a line end.
    return yaml.safe_dump(topology.model_dump(mode="json"), sort_keys=False)
