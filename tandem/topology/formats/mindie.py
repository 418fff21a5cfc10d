"""MindIE's global rank table: the same keys as the documents' global table, other groups.

    group 0: the coordinator (our scheduler)     group 1: the controller     group 2: the servers

An entry of group 2 is one instance, prefill or decode: which of them is decided by the controller while it runs, so
the file does not say. Devices have a `device_logical_id` too, their number inside the container. Version 1.2 is for
super pods, which then are listed in group 2. `deploy_server` of that group is kept where it is not "0", which is what
the reference's example for ordinary servers has; that of the other groups always. Source: MindCluster's reference,
SubscribeRankTable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tandem.topology.finding import Finding
from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.global_table import GLOBAL
from tandem.topology.formats.inventory import Inventory, Kind, Placement
from tandem.topology.formats.server_entry import agreed, empty_group_findings, placement_of, server_of, unknown
from tandem.topology.formats.super_pod import VERSIONS, SuperPod, pods_of, stranger_findings, super_pods, usual_version
from tandem.topology.rank_table import STATUS, Entry, Server, ServerGroup, Text, parse_table, render
from tandem.topology.rank_table_rules import (
    address_findings,
    count_findings,
    header_findings,
    repeated_devices,
    server_findings,
)
from tandem.topology.topology import Role

COORDINATOR, CONTROLLER, SERVERS = "0", "1", "2"
ORDINARY = {"deploy_server": "0"}


class MindieGroup(ServerGroup):
    """All processes of one kind."""

    super_pod_list: tuple[SuperPod, ...] = ()


class MindieTable(Entry):
    """A MindIE global rank table."""

    version: Text
    status: Text
    server_group_list: tuple[MindieGroup, ...]

    def entries(self, group_id: str) -> Iterator[tuple[str, MindieGroup, Server]]:
        """Every entry of one group: JSON path, group, itself."""
        for i, group in enumerate(self.server_group_list):
            if group.group_id == group_id:
                for j, server in enumerate(group.server_list):
                    yield f"$.server_group_list[{i}].server_list[{j}]", group, server


def read(text: str, source: str) -> Reading:
    """A MindIE table."""
    table = parse_table(MindieTable, text, source)
    coordinators = [placed(server, group, Role.GATEWAY) for _, group, server in table.entries(COORDINATOR)]
    controllers = [placed(server, group, Role.GATEWAY) for _, group, server in table.entries(CONTROLLER)]
    servers = [placed(server, group, None) for _, group, server in table.entries(SERVERS)]
    pods = [pod for group in table.server_group_list for pod in group.super_pod_list]
    inventory = Inventory(
        placements=(*coordinators, *servers),
        controller=controllers[0] if controllers else None,
        version=None if table.version == usual_version(pods) else table.version,
        keys=unknown(table),
    )
    return Reading(inventory=inventory, findings=list(findings_of(table, source)))


def placed(server: Server, group: MindieGroup, role: Role | None) -> Placement:
    """An entry; logical numbers and deploy_server are left out where they are what would be written."""
    usual = ORDINARY if group.group_id == SERVERS else {}
    keys = {key: value for key, value in unknown(group).items() if usual.get(key) != str(value)}
    placement = placement_of(server, role, keys)
    devices = tuple(
        replace(device, keys={key: value for key, value in device.keys.items() if not is_rank(key, value, rank)})
        for rank, device in enumerate(placement.devices)
    )
    return replace(placement, devices=devices, super_pod=pods_of(group.super_pod_list).get(server.server_id))


def is_rank(key: str, value: Any, rank: int) -> bool:
    """Whether a key says again what rank a device has."""
    return key == "device_logical_id" and str(value) == str(rank)


def findings_of(table: MindieTable, source: str) -> Iterator[Finding]:
    """Every broken rule."""
    yield from header_findings(table.version, table.status, source, VERSIONS)
    found = [group.group_id for group in table.server_group_list]
    if len(set(found)) < len(found) or not set(found) <= {COORDINATOR, CONTROLLER, SERVERS}:
        problem = f"holds the groups {', '.join(found)}"
        fix = "MindIE has 0 for the coordinator, 1 for the controller and 2 for the servers, each once"
        yield Finding(source, "$.server_group_list", "groups", problem, fix)
    yield from count_findings(table.server_group_list, source)
    yield from empty_group_findings(table.server_group_list, source)
    for i, group in enumerate(table.server_group_list):
        if group.super_pod_list and group.group_id != SERVERS:
            problem = f"super pods are said of group {group.group_id}, which has no devices"
            fix = "move them to group 2, or remove them"
            yield Finding(source, f"$.server_group_list[{i}].super_pod_list", "super-pods", problem, fix)
        names = {server.server_id for server in group.server_list}
        yield from stranger_findings(group.super_pod_list, names, f"$.server_group_list[{i}]", source)
    for group_id, name in ((COORDINATOR, "coordinator"), (CONTROLLER, "controller")):
        for number, (path, _, server) in enumerate(table.entries(group_id)):
            if number:
                yield Finding(source, path, f"one-{name}", f"{server.server_ip} is one {name} too many", "keep one")
            if server.device:
                problem = f"the {name} has devices"
                yield Finding(source, f"{path}.device", f"{name}-devices", problem, "remove the device key")
    servers = [(path, server) for path, _, server in table.entries(SERVERS)]
    for path, server in servers:
        yield from server_findings(path, server, source)
    devices = (
        (f"{path}.device[{j}].device_id", server.server_ip, number)
        for path, server in servers
        for j, number in enumerate(server.device_ids)
    )
    yield from repeated_devices(devices, source)
    for group_id in (COORDINATOR, CONTROLLER, SERVERS):
        for path, _, server in table.entries(group_id):
            yield from address_findings(path, server, source)


def write(inventory: Inventory) -> str:
    """A MindIE table's JSON text."""
    controllers = [] if inventory.controller is None else [inventory.controller]
    pods = super_pods(inventory.working)
    groups = (
        group_of(COORDINATOR, inventory.of(Role.GATEWAY), {}),
        group_of(CONTROLLER, controllers, {}),
        group_of(SERVERS, [numbered(one) for one in inventory.working], {"super_pod_list": pods} if pods else {}),
    )
    version = inventory.version or usual_version(pods)
    return render(MindieTable(version=version, status=STATUS, server_group_list=groups, **dict(inventory.keys)))


def group_of(group_id: str, members: Sequence[Placement], fields: Mapping[str, Any]) -> MindieGroup:
    """One group with its members."""
    keys = {
        **(ORDINARY if group_id == SERVERS else {}),
        **agreed((one.group_keys for one in members), f"group {group_id} of the MindIE table"),
    }
    servers = tuple(map(server_of, members))
    return MindieGroup(group_id=group_id, server_count=str(len(servers)), server_list=servers, **keys, **dict(fields))


def numbered(placement: Placement) -> Placement:
    """Its devices with the logical number they have by rank, where they say no other."""
    devices = tuple(
        replace(device, keys={"device_logical_id": str(rank), **device.keys})
        for rank, device in enumerate(placement.devices)
    )
    return replace(placement, devices=devices)


MINDIE = Format(
    name="mindie",
    title="a MindIE table",
    says=frozenset(Kind) - {Kind.ROLE, Kind.BOTH, Kind.TOPOLOGY_FIELD},
    needs=frozenset({"devices", "instances", "scheduler", "controller"}),
    own=GLOBAL.own | {"super_pod_list"},
    read=read,
    write=write,
)
