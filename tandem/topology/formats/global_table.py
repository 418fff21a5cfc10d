"""The documents' global rank table as a format."""

from __future__ import annotations

from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.inventory import Inventory, Kind
from tandem.topology.formats.server_entry import agreed, empty_group_findings, placement_of, server_of, unknown
from tandem.topology.rank_table import (
    GROUP_IDS,
    ROLES,
    STATUS,
    VERSION,
    GlobalTable,
    ServerGroup,
    parse_table,
    render,
)
from tandem.topology.rank_table_rules import check_global_table


def read(text: str, source: str) -> Reading:
    """A global table, of a whole service or of one host before merging."""
    table = parse_table(GlobalTable, text, source)
    placements = tuple(
        placement_of(server, ROLES[group.group_id], unknown(group))
        for group in table.server_group_list
        if group.group_id in ROLES
        for server in group.server_list
    )
    inventory = Inventory(placements=placements, keys=unknown(table))
    findings = check_global_table(table, complete=False, source=source)
    return Reading(inventory=inventory, findings=[*findings, *empty_group_findings(table.server_group_list, source)])


def write(inventory: Inventory) -> str:
    """The table's JSON text; it holds the roles that the inventory has."""
    groups = []
    for role, group_id in GROUP_IDS.items():
        members = inventory.of(role)
        keys = agreed((member.group_keys for member in members), f"the {role} group of the global table")
        servers = tuple(map(server_of, members))
        groups.append(ServerGroup(group_id=group_id, server_count=str(len(servers)), server_list=servers, **keys))
    return render(GlobalTable(version=VERSION, status=STATUS, server_group_list=tuple(groups), **dict(inventory.keys)))


GLOBAL = Format(
    name="global",
    title="a global table",
    says=frozenset(Kind) - {Kind.BOTH, Kind.CONTROLLER, Kind.SUPER_POD, Kind.VERSION, Kind.TOPOLOGY_FIELD},
    needs=frozenset({"devices", "role", "instances"}),
    own=frozenset(
        {"version", "status", "server_group_list", "group_id", "server_count", "server_list", "server_id", "server_ip"}
        | {"device", "device_id", "device_ip", "rank_id"}
    ),
    read=read,
    write=write,
)
