"""Tables whose one `server_list` is a single group of ranks over hosts: HCCL's, and the one-click rank_table_file.json.

    {"version": "1.0" or, with super pods, "1.2", "status": "completed", "server_count": "2",
     "server_list": [{"server_id", "host_ip" (HCCL) or "container_ip" (one-click),
                      "device": [{"device_id", "device_ip", "rank_id"}]}],
     "super_pod_list": [{"super_pod_id", "server_list": [{"server_id"}]}]}    HCCL 1.2 only

Ranks count over all servers, those of a server without a gap. There are no roles, and no instances smaller than the
whole. Sources: CANN's HCCL rank table reference; the rank_table_file.json of the one-click DeepSeek deployment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from tandem.topology.finding import Finding
from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.inventory import Inventory, Kind, PlacedDevice, Placement
from tandem.topology.formats.server_entry import agreed, unknown
from tandem.topology.formats.super_pod import SuperPod, pods_of, stranger_findings, super_pods
from tandem.topology.rank_table import STATUS, VERSION, Entry, Number, Text, parse_table, render
from tandem.topology.rank_table_rules import header_findings, repeated_devices

SUPER_POD_VERSION = "1.2"


class ListedDevice(Entry):
    """One device."""

    device_id: Number
    device_ip: Text | None = None
    """May be missing where one host is all there is."""
    rank_id: Number
    """Counts over all servers."""


class ListedServer(Entry):
    """One host; each of the two formats has a name of its own for its address."""

    server_id: Text
    device: tuple[ListedDevice, ...]

    @property
    def host(self) -> str:
        """Its address."""
        return self.server_id

    @property
    def ranks(self) -> list[int]:
        """In the order of the file."""
        return [int(device.rank_id) for device in self.device]


class HcclServer(ListedServer):
    """A server of an HCCL table."""

    host_ip: Text | None = None

    @property
    def host(self) -> str:
        """Its address; the name of a server that has none given is one."""
        return self.host_ip or self.server_id


class OneClickServer(ListedServer):
    """A server of a one-click table."""

    container_ip: Text

    @property
    def host(self) -> str:
        """The address inside the container, the same as the node's unless the network is special."""
        return self.container_ip


class HcclTable(Entry):
    """An HCCL rank table."""

    version: Text
    status: Text
    server_count: Number | None = None
    """May be missing in version 1.2."""
    server_list: tuple[HcclServer, ...]
    super_pod_list: tuple[SuperPod, ...] = ()


class OneClickTable(Entry):
    """A rank_table_file.json."""

    version: Text = VERSION
    status: Text = STATUS
    server_count: Number
    server_list: tuple[OneClickServer, ...]


def read_hccl(text: str, source: str) -> Reading:
    """An HCCL table."""
    table = parse_table(HcclTable, text, source)
    found = reading(table, pods_of(table.super_pod_list), source, (VERSION, SUPER_POD_VERSION))
    servers = {server.server_id for server in table.server_list}
    strangers = stranger_findings(table.super_pod_list, servers, "$", source)
    return replace(found, findings=[*found.findings, *strangers])


def read_one_click(text: str, source: str) -> Reading:
    """A rank_table_file.json."""
    return reading(parse_table(OneClickTable, text, source), {}, source, (VERSION,))


def reading(table: HcclTable | OneClickTable, pods: dict[str, str], source: str, versions: Sequence[str]) -> Reading:
    """Hosts and devices in the order of their ranks."""
    servers = sorted(table.server_list, key=lambda server: min(server.ranks, default=0))
    placements = tuple(placement_of(server, pods.get(server.server_id)) for server in servers)
    return Reading(
        inventory=Inventory(placements=placements, cut=len(placements) == 1, keys=unknown(table)),
        findings=[
            *header_findings(table.version, table.status, source, versions),
            *server_findings(table, source),
            *rank_findings(table, source),
            *repeated_devices(devices_of(table), source),
        ],
    )


def placement_of(server: ListedServer, super_pod: str | None) -> Placement:
    """A server, its devices in the order of their ranks."""
    devices = sorted(server.device, key=lambda device: int(device.rank_id))
    return Placement(
        host=server.host,
        server_id=server.server_id,
        super_pod=super_pod,
        devices=tuple(
            PlacedDevice(id=int(device.device_id), address=device.device_ip, keys=unknown(device)) for device in devices
        ),
        keys=unknown(server),
    )


def server_findings(table: HcclTable | OneClickTable, source: str) -> Iterator[Finding]:
    """Each server stands there once, with devices, and they are as many as is said."""
    if table.server_count is not None and int(table.server_count) != len(table.server_list):
        problem = f'server_count is "{table.server_count}" but server_list holds {len(table.server_list)}'
        fix = f'write "{len(table.server_list)}", or mend server_list'
        yield Finding(source, "$.server_count", "server-count", problem, fix)
    places: dict[str, str] = {}
    for i, server in enumerate(table.server_list):
        path = f"$.server_list[{i}]"
        if places.setdefault(server.server_id, path) != path:
            problem = f"server {server.server_id} is also at {places[server.server_id]}"
            yield Finding(source, f"{path}.server_id", "server-once", problem, "put its devices into one entry")
        if not server.device:
            yield Finding(source, f"{path}.device", "devices", "the server has no devices", "list them, or remove it")


def rank_findings(table: HcclTable | OneClickTable, source: str) -> Iterator[Finding]:
    """Ranks are 0, 1, 2 ... over all servers, and those of a server follow each other."""
    ranks = sorted(
        (rank, f"$.server_list[{i}].device[{j}].rank_id")
        for i, server in enumerate(table.server_list)
        for j, rank in enumerate(server.ranks)
    )
    for wanted, (rank, path) in enumerate(ranks):
        if rank != wanted:
            fix = f'write "{wanted}": ranks count from 0 over all servers'
            yield Finding(source, path, "rank-ids", f'rank_id is "{rank}"', fix)
            return
    for i, server in enumerate(table.server_list):
        if server.ranks and max(server.ranks) - min(server.ranks) >= len(server.ranks):
            problem = f"server {server.server_id} has ranks between which another server's lie"
            fix = "give each server ranks that follow each other"
            yield Finding(source, f"$.server_list[{i}].device", "rank-ids", problem, fix)


def devices_of(table: HcclTable | OneClickTable) -> Iterator[tuple[str, str, int]]:
    """Every device: JSON path, host, number."""
    for i, server in enumerate(table.server_list):
        for j, device in enumerate(server.device):
            yield f"$.server_list[{i}].device[{j}].device_id", server.host, int(device.device_id)


def write_hccl(inventory: Inventory) -> str:
    """An HCCL table's JSON text; `host_ip` only where it differs from the server's name."""
    hosts = joined(inventory.working)
    servers, pods = listed(HcclServer, hosts, "host_ip"), super_pods(hosts)
    return render(
        HcclTable(
            version=SUPER_POD_VERSION if pods else VERSION,
            status=STATUS,
            server_count=str(len(hosts)),
            server_list=servers,
            **({"super_pod_list": pods} if pods else {}),
            **dict(inventory.keys),
        )
    )


def write_one_click(inventory: Inventory) -> str:
    """A rank_table_file.json's text."""
    hosts = joined(inventory.working)
    servers = listed(OneClickServer, hosts, "container_ip")
    return render(
        OneClickTable(
            version=VERSION, status=STATUS, server_count=str(len(hosts)), server_list=servers, **dict(inventory.keys)
        )
    )


def joined(placements: Sequence[Placement]) -> list[Placement]:
    """One placement for each host, in the order of its first; a server may stand in such a table once only."""
    order = {server: number for number, server in enumerate(dict.fromkeys(map(server_of, placements)))}
    hosts = []
    for (host, server_id, _), members in groupby(sorted(placements, key=lambda one: order[server_of(one)]), server_of):
        group = list(members)
        keys = agreed((member.keys for member in group), f"server {server_id}")
        devices = tuple(device for member in group for device in member.devices)
        hosts.append(replace(group[0], host=host, keys=keys, devices=devices))
    return hosts


def server_of(placement: Placement) -> tuple[str, str, str | None]:
    """What makes two placements one server."""
    return placement.host, placement.server_id, placement.super_pod


def listed(kind: type[ListedServer], hosts: Sequence[Placement], address: str) -> Any:
    """The entries of a table, ranks counted over all; a device without an address of its own has its host's."""
    first, servers = 0, []
    for host in hosts:
        devices = tuple(
            ListedDevice(
                device_id=str(device.id), device_ip=device.address or host.host, rank_id=str(first + k), **device.keys
            )
            for k, device in enumerate(host.devices)
        )
        needed = kind is OneClickServer or host.host != host.server_id
        servers.append(
            kind(
                server_id=host.server_id, **({address: host.host} if needed else {}), device=devices, **dict(host.keys)
            )
        )
        first += len(devices)
    return tuple(servers)


OWN = frozenset(
    {"version", "status", "server_count", "server_list", "server_id", "device", "device_id", "device_ip", "rank_id"}
)
SAYS = frozenset({Kind.SERVER_ID, Kind.DEVICE_KEY, Kind.SERVER_KEY, Kind.TABLE_KEY})

HCCL = Format(
    name="hccl",
    title="an HCCL table",
    says=SAYS | {Kind.SUPER_POD},
    needs=frozenset(),
    own=OWN | {"host_ip", "super_pod_list", "super_pod_id"},
    read=read_hccl,
    write=write_hccl,
)

ONE_CLICK = Format(
    name="one-click",
    title="a one-click table",
    says=SAYS,
    needs=frozenset(),
    own=OWN | {"container_ip"},
    read=read_one_click,
    write=write_one_click,
)
