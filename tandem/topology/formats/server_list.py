"""What HCCL's table and the one-click rank_table_file.json have in common: one list of servers, one group of ranks.

Ranks count over all servers, and those of a server follow each other. There are no roles, and no instances smaller
than the whole. The two differ in the name of a server's address, and in super pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import ClassVar

from tandem.topology.finding import Finding
from tandem.topology.formats.inventory import Kind, PlacedDevice, Placement
from tandem.topology.formats.server_entry import agreed, unknown
from tandem.topology.rank_table import Entry, Number, Text
from tandem.topology.rank_table_rules import no_address_findings, repeated_devices

SAYS = frozenset({Kind.SERVER_ID, Kind.DEVICE_KEY, Kind.SERVER_KEY, Kind.TABLE_KEY})
OWN = frozenset(
    {"version", "status", "server_count", "server_list", "server_id", "device", "device_id", "device_ip", "rank_id"}
)


class ListedDevice(Entry):
    """One device."""

    device_id: Number
    device_ip: Text | None = None
    """May be missing where one host is all there is."""
    rank_id: Number
    """Counts over all servers."""


class ListedServer(Entry):
    """One host."""

    server_id: Text
    device: tuple[ListedDevice, ...]

    address_key: ClassVar[str]
    """The format's own name for a server's address."""

    @property
    def address(self) -> str | None:
        """As the file says it."""
        address: str | None = getattr(self, self.address_key)
        return address

    @property
    def host(self) -> str:
        """Its address; where none is given its name is one."""
        return self.address or self.server_id

    @property
    def ranks(self) -> list[int]:
        """In the order of the file."""
        return [int(device.rank_id) for device in self.device]


def in_rank_order(servers: Sequence[ListedServer]) -> list[ListedServer]:
    """The servers in the order of their ranks; a file may have another."""
    return sorted(servers, key=lambda server: min(server.ranks, default=0))


def placement_of(server: ListedServer, super_pod: str | None = None) -> Placement:
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


def server_list_findings(servers: Sequence[ListedServer], server_count: str | None, source: str) -> Iterator[Finding]:
    """Every broken rule of a list of servers."""
    yield from server_findings(servers, server_count, source)
    yield from rank_findings(servers, source)
    devices = (
        (f"$.server_list[{i}].device[{j}].device_id", server.host, int(device.device_id))
        for i, server in enumerate(servers)
        for j, device in enumerate(server.device)
    )
    yield from repeated_devices(devices, source)
    yield from no_address_findings(address_places(servers), source)


def address_places(servers: Sequence[ListedServer]) -> Iterator[tuple[str, str | None]]:
    """Every address of a server or a device: JSON path, text."""
    for i, server in enumerate(servers):
        yield f"$.server_list[{i}].{server.address_key}", server.address
        for j, device in enumerate(server.device):
            yield f"$.server_list[{i}].device[{j}].device_ip", device.device_ip


def server_findings(servers: Sequence[ListedServer], server_count: str | None, source: str) -> Iterator[Finding]:
    """Each server stands there once, with devices, and they are as many as is said."""
    if server_count is not None and int(server_count) != len(servers):
        problem = f'server_count is "{server_count}" but server_list holds {len(servers)}'
        yield Finding(source, "$.server_count", "server-count", problem, f'write "{len(servers)}", or mend server_list')
    if not servers:
        yield Finding(source, "$.server_list", "devices", "holds no server", "list at least one, with its devices")
    places: dict[str, str] = {}
    for i, server in enumerate(servers):
        path = f"$.server_list[{i}]"
        if places.setdefault(server.server_id, path) != path:
            problem = f"server {server.server_id} is also at {places[server.server_id]}"
            yield Finding(source, f"{path}.server_id", "server-once", problem, "put its devices into one entry")
        if not server.device:
            yield Finding(source, f"{path}.device", "devices", "the server has no devices", "list them, or remove it")


def rank_findings(servers: Sequence[ListedServer], source: str) -> Iterator[Finding]:
    """Ranks are 0, 1, 2 ... over all servers, and those of a server follow each other."""
    ranks = sorted(
        (rank, f"$.server_list[{i}].device[{j}].rank_id")
        for i, server in enumerate(servers)
        for j, rank in enumerate(server.ranks)
    )
    for wanted, (rank, path) in enumerate(ranks):
        if rank != wanted:
            fix = f'write "{wanted}": ranks count from 0 over all servers'
            yield Finding(source, path, "rank-ids", f'rank_id is "{rank}"', fix)
            return
    for i, server in enumerate(servers):
        if server.ranks and max(server.ranks) - min(server.ranks) >= len(server.ranks):
            problem = f"server {server.server_id} has ranks between which another server's lie"
            fix = "give each server ranks that follow each other"
            yield Finding(source, f"$.server_list[{i}].device", "rank-ids", problem, fix)


def joined(placements: Sequence[Placement]) -> list[Placement]:
    """One placement for each server, in the order of its first; a server may stand in such a table once only."""
    order = {server: number for number, server in enumerate(dict.fromkeys(map(server_of, placements)))}
    servers = []
    for (_, server_id, _), members in groupby(sorted(placements, key=lambda one: order[server_of(one)]), server_of):
        group = list(members)
        keys = agreed((member.keys for member in group), f"server {server_id}")
        devices = tuple(device for member in group for device in member.devices)
        servers.append(replace(group[0], keys=keys, devices=devices))
    return servers


def server_of(placement: Placement) -> tuple[str, str, str | None]:
    """What makes two placements one server."""
    return placement.host, placement.server_id, placement.super_pod


def listed_devices(servers: Sequence[Placement]) -> Iterator[tuple[ListedDevice, ...]]:
    """Each server's devices, ranks counted over all; one without an address of its own has its host's."""
    first = 0
    for server in servers:
        yield tuple(
            ListedDevice(
                device_id=str(device.id), device_ip=device.address or server.host, rank_id=str(rank), **device.keys
            )
            for rank, device in enumerate(server.devices, start=first)
        )
        first += len(server.devices)
