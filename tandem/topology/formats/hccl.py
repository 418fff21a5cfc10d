"""HCCL's rank table.

    {"version": "1.0" or, with super pods, "1.2", "status": "completed", "server_count": "2",
     "server_list": [{"server_id", ("host_ip"), "device": [{"device_id", "device_ip", "rank_id"}]}],
     "super_pod_list": [{"super_pod_id", "server_list": [{"server_id"}]}]}    1.2 only

Source: CANN's reference of the rank table.
"""

from __future__ import annotations

from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.inventory import Inventory, Kind, Placement
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
from tandem.topology.formats.super_pod import VERSIONS, SuperPod, pods_of, stranger_findings, super_pods, usual_version
from tandem.topology.rank_table import STATUS, Entry, Number, Text, parse_table, render
from tandem.topology.rank_table_rules import header_findings


class HcclServer(ListedServer):
    """One host."""

    address_key = "host_ip"

    host_ip: Text | None = None


class HcclTable(Entry):
    """An HCCL rank table."""

    version: Text
    status: Text
    server_count: Number | None = None
    """May be missing in version 1.2."""
    server_list: tuple[HcclServer, ...]
    super_pod_list: tuple[SuperPod, ...] = ()


def read(text: str, source: str) -> Reading:
    """An HCCL table; on one host it is one instance."""
    table = parse_table(HcclTable, text, source)
    pods = pods_of(table.super_pod_list)
    placements = tuple(placement_of(one, pods.get(one.server_id)) for one in in_rank_order(table.server_list))
    version = None if table.version == usual_version(table.super_pod_list) else table.version
    names = {server.server_id for server in table.server_list}
    return Reading(
        inventory=Inventory(placements=placements, cut=len(placements) == 1, version=version, keys=unknown(table)),
        findings=[
            *header_findings(table.version, table.status, source, VERSIONS),
            *server_list_findings(table.server_list, table.server_count, source),
            *stranger_findings(table.super_pod_list, names, "$", source),
        ],
    )


def write(inventory: Inventory) -> str:
    """The table's JSON text."""
    servers = joined(inventory.working)
    listed = tuple(map(server_of, servers, listed_devices(servers)))
    pods = super_pods(servers)
    table = HcclTable(
        version=inventory.version or usual_version(pods),
        status=STATUS,
        server_count=str(len(listed)),
        server_list=listed,
        **({"super_pod_list": pods} if pods else {}),
        **dict(inventory.keys),
    )
    return render(table)


def server_of(placement: Placement, devices: tuple[ListedDevice, ...]) -> HcclServer:
    """One entry; `host_ip` only where it says more than the name."""
    address = {} if placement.host == placement.server_id else {"host_ip": placement.host}
    return HcclServer(server_id=placement.server_id, **address, device=devices, **dict(placement.keys))


HCCL = Format(
    name="hccl",
    title="an HCCL table",
    says=SAYS | {Kind.SUPER_POD, Kind.VERSION},
    needs=frozenset({"devices"}),
    own=OWN | {"host_ip", "super_pod_list", "super_pod_id"},
    read=read,
    write=write,
)
