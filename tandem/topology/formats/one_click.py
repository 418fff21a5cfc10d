"""The rank_table_file.json of the one-click DeepSeek deployment: HCCL's table with container addresses.

    {"version": "1.0", "status": "completed", "server_count": "2",
     "server_list": [{"server_id", "container_ip", "device": [{"device_id", "device_ip", "rank_id"}]}]}

The file is the same on every machine. Source: the appendix of the deployment's guide.
"""

from __future__ import annotations

from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.inventory import Inventory, Placement
from tandem.topology.formats.server_entry import unknown
from tandem.topology.formats.server_list import (
    OWN,
    SAYS,
    ListedDevice,
    ListedServer,
    in_rank_order,
    joined,
    listed_devices,
    placement_of,
    server_list_findings,
)
from tandem.topology.rank_table import STATUS, VERSION, Entry, Number, Text, parse_table, render
from tandem.topology.rank_table_rules import header_findings


class OneClickServer(ListedServer):
    """One machine."""

    address_key = "container_ip"

    container_ip: Text
    """The address inside the container, the same as the node's unless the network is special."""


class OneClickTable(Entry):
    """A rank_table_file.json; version and status are not in all of its descriptions."""

    version: Text = VERSION
    status: Text = STATUS
    server_count: Number
    server_list: tuple[OneClickServer, ...]


def read(text: str, source: str) -> Reading:
    """A rank_table_file.json; on one machine it is one instance."""
    table = parse_table(OneClickTable, text, source)
    placements = tuple(map(placement_of, in_rank_order(table.server_list)))
    return Reading(
        inventory=Inventory(placements=placements, cut=len(placements) == 1, keys=unknown(table)),
        findings=[
            *header_findings(table.version, table.status, source),
            *server_list_findings(table.server_list, table.server_count, source),
        ],
    )


def write(inventory: Inventory) -> str:
    """The file's JSON text."""
    servers = joined(inventory.working)
    listed = tuple(map(server_of, servers, listed_devices(servers)))
    count = str(len(listed))
    return render(
        OneClickTable(version=VERSION, status=STATUS, server_count=count, server_list=listed, **dict(inventory.keys))
    )


def server_of(placement: Placement, devices: tuple[ListedDevice, ...]) -> OneClickServer:
    """One entry."""
    return OneClickServer(
        server_id=placement.server_id, container_ip=placement.host, device=devices, **dict(placement.keys)
    )


ONE_CLICK = Format(
    name="one-click",
    title="a one-click table",
    says=SAYS,
    needs=frozenset({"devices"}),
    own=OWN | {"container_ip"},
    read=read,
    write=write,
)
