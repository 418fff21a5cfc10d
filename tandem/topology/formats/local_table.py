"""The documents' local rank table as a format: one instance, of which it does not say the role."""

from __future__ import annotations

from pathlib import Path

from tandem.errors import TopologyError
from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.global_table import GLOBAL
from tandem.topology.formats.inventory import Inventory, Kind
from tandem.topology.formats.server_entry import placement_of, server_of, unknown
from tandem.topology.local_table_rules import format_findings
from tandem.topology.rank_table import LocalTable, new_local_table, parse_table, render, write_tables
from tandem.topology.rank_table_set import named_local_tables
from tandem.topology.topology import Role


def read(text: str, source: str) -> Reading:
    """A local table; one without devices is the scheduler's."""
    table = parse_table(LocalTable, text, source)
    placements = tuple(placement_of(one, None if one.device else Role.GATEWAY) for one in table.server_list)
    inventory = Inventory(placements=placements, keys=unknown(table))
    return Reading(inventory=inventory, findings=list(format_findings(table, source)))


def write(inventory: Inventory) -> str:
    """The local table's JSON text."""
    (placement,) = inventory.working
    return render(new_local_table(server_of(placement)).model_copy(update=dict(inventory.keys)))


def write_local_tables(inventory: Inventory, target: Format, folder: Path) -> list[Path]:
    """Write the local table of every instance under the documents' names; returns the paths written.

    Raises:
        TopologyError: When the format they would belong to is not the global table, or one cannot be written.
    """
    if target is not GLOBAL:
        raise TopologyError(f"--local-tables belong to a global table, not to {target.title}; use --to global")
    tables = named_local_tables([server_of(placement) for placement in inventory.placements])
    write_tables({folder / name: table for name, table in tables.items()})
    return [folder / name for name in tables]


LOCAL = Format(
    name="local",
    title="a local table",
    says=frozenset({Kind.SERVER_ID, Kind.DEVICE_KEY, Kind.SERVER_KEY, Kind.TABLE_KEY}),
    needs=frozenset({"devices", "instances", "one instance"}),
    own=GLOBAL.own,
    read=read,
    write=write,
)
