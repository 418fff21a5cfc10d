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

from tandem.topology.file import read_topology
from tandem.topology.rank_table import GlobalTable, LocalTable, Server, read_table
from tandem.topology.rank_table_codec import instance_name
from tandem.topology.topology import Instance, Role

COLOURS = {Role.GATEWAY: "magenta", Role.PREFILL: "green", Role.DECODE: "cyan", Role.BOTH: "yellow"}


@dataclass(frozen=True)
class Row:
    """One instance, as far as the file tells."""

    host: str
    name: str
    role: Role | None
    """None where the file does not say: a local table of a prefill or decode instance."""
    port: int | None
    devices: dict[int, str | None]
    """Device number -> its address."""


def read_rows(path: Path) -> tuple[Row, ...]:
    """The instances of a topology (.yaml, .yml), or of a global or local rank table (any other file).

    Raises:
        TopologyError: Naming the file and what is wrong with it.
    """
    if path.suffix in (".yaml", ".yml"):
        return tuple(map(instance_row, read_topology(path).instances))
    table = read_table(path)
    return tuple(global_rows(table) if isinstance(table, GlobalTable) else local_rows(table))


def instance_row(instance: Instance) -> Row:
    """An instance of a Topology."""
    devices = {device.id: device.address for device in instance.devices}
    return Row(instance.host, instance.name, instance.role, instance.port, devices)


def global_rows(table: GlobalTable) -> Iterator[Row]:
    """The instances of a global table."""
    for role in (Role.GATEWAY, Role.PREFILL, Role.DECODE):
        for position, server in enumerate(table.servers(role)):
            yield server_row(server, instance_name(role, position), role)


def local_rows(table: LocalTable) -> Iterator[Row]:
    """A local table's own entry."""
    for server in table.server_list:
        yield server_row(server, "instance" if server.device else "gateway", None if server.device else Role.GATEWAY)


def server_row(server: Server, name: str, role: Role | None) -> Row:
    """An entry of a rank table, which knows no port."""
    devices: dict[int, str | None] = {int(device.device_id): device.device_ip for device in server.device or ()}
    return Row(server.server_ip, name, role, None, devices)


def draw(title: str, rows: Sequence[Row]) -> Tree:
    """A tree of hosts and their instances, to be printed on a rich console."""
    tree = Tree(Text(title, style="bold"))
    for host in dict.fromkeys(row.host for row in rows):
        branch = tree.add(Text(host, style="bold"))
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
        text.append(f" devices {', '.join(labels)}")
    return text
