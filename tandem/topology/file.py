"""A Topology as a YAML file."""

from __future__ import annotations

from pathlib import Path

import yaml

from tandem.topology.plain_data import yaml_mapping
from tandem.topology.record import ShapeError
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
    fields = yaml_mapping(text, source)
    try:
        return Topology(**fields)
    except ShapeError as error:
        raise ShapeError(error.faults, source) from error


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
