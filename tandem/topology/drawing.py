"""A picture of instances for the terminal: hosts, and on each its instances with role, port and devices.

Files are drawn as they are, complete or not: a table that breaks a rule, or in which addresses are masked, can still
be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text
from rich.tree import Tree

from tandem.errors import printable
from tandem.topology.formats.inventory import Inventory, Placement
from tandem.topology.formats.known import read_any
from tandem.topology.rank_table_codec import instance_name
from tandem.topology.topology import Role

COLOURS = {Role.GATEWAY: "magenta", Role.PREFILL: "green", Role.DECODE: "cyan", Role.BOTH: "yellow"}


@dataclass(frozen=True)
class Row:
    """One instance, as far as the file tells; or a host's devices, where it does not tell instances apart."""

    host: str
    name: str
    role: Role | None
    """None where the file does not say."""
    port: int | None
    devices: dict[int, str | None]
    """Device number -> its address."""


def read_rows(path: Path, format_name: str | None = None) -> tuple[Row, ...]:
    """The instances of a file in any known format, recognised from its contents where no format is named.

    Raises:
        TopologyError: Naming the file and what is wrong with it.
    """
    return tuple(rows(read_any(path, format_name).inventory))


def rows(inventory: Inventory) -> Iterator[Row]:
    """A row for each placement; without a name of its own it has the one a topology would give it."""
    positions: dict[Role | None, int] = {}
    if inventory.controller is not None:
        yield Row(inventory.controller.host, "controller", None, None, {})
    for placement in inventory.placements:
        position = positions.setdefault(placement.role, 0)
        positions[placement.role] += 1
        usual = instance_name(placement.role, position) if placement.role else f"instance-{position}"
        name = usual if inventory.cut or placement.role is Role.GATEWAY else "devices"
        yield row(placement, placement.fields.get("name", name))


def row(placement: Placement, name: str) -> Row:
    """A placement in one row."""
    devices = {device.id: device.address for device in placement.devices}
    return Row(placement.host, name, placement.role, placement.fields.get("port"), devices)


def draw(title: str, rows: Sequence[Row]) -> Tree:
    """A tree of hosts and their instances, to be printed on a rich console."""
    tree = Tree(Text(title, style="bold"))
    for host in dict.fromkeys(row.host for row in rows):
        branch = tree.add(Text(printable(host), style="bold"))
        for row in rows:
            if row.host == host:
                branch.add(line(row))
    return tree


def line(row: Row) -> Text:
    """One instance in one line."""
    text = Text(f"{row.name:<12}")
    if row.role is not None:
        text.append(f" {row.role:<8}", style=COLOURS[row.role])
    if row.port is not None:
        text.append(f" port {row.port}")
    if row.devices:
        labels = (f"{number} ({address})" if address else str(number) for number, address in row.devices.items())
        text.append(f" devices {', '.join(map(printable, labels))}")
    return text
