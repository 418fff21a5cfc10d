"""The rank table of vllm-ascend 0.9: a flat list of devices for each of the two roles.

    {"version": "1.2", "server_count": "2", "prefill_device_list": [DEVICE ...], "decode_device_list": [DEVICE ...],
     "status": "completed"}     DEVICE: {"server_id", "device_id", "device_ip", "cluster_id", ("super_pod_id")}

`cluster_id` counts from 1 over both lists. Which devices make an instance is not said. Source: vllm-ascend v0.9.1,
examples/disaggregate_prefill_v1, whose generator writes the number of its own processes' hosts as server_count, used
or not; so it is written, but not compared with anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from tandem.topology.finding import Finding
from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.inventory import Inventory, Kind, PlacedDevice, Placement
from tandem.topology.formats.server_entry import unknown
from tandem.topology.rank_table import STATUS, Entry, Number, Text, parse_table, render
from tandem.topology.rank_table_rules import header_findings, no_address_findings, repeated_devices
from tandem.topology.topology import Role

VERSION = "1.2"


class RoleDevice(Entry):
    """One device of a role."""

    server_id: Text
    """Address of its host."""
    device_id: Number
    device_ip: Text
    cluster_id: Number
    super_pod_id: Text | None = None


class VllmAscendTable(Entry):
    """A vllm-ascend rank table."""

    version: Text
    server_count: Number
    prefill_device_list: tuple[RoleDevice, ...]
    decode_device_list: tuple[RoleDevice, ...]
    status: Text

    def places(self) -> Iterator[tuple[str, RoleDevice]]:
        """Every device and its JSON path."""
        for name, devices in (("prefill", self.prefill_device_list), ("decode", self.decode_device_list)):
            for i, device in enumerate(devices):
                yield f"$.{name}_device_list[{i}]", device


def read(text: str, source: str) -> Reading:
    """A vllm-ascend table; devices of one host that follow each other stand together."""
    table = parse_table(VllmAscendTable, text, source)
    placements = (
        *placements_of(table.prefill_device_list, Role.PREFILL),
        *placements_of(table.decode_device_list, Role.DECODE),
    )
    devices = ((f"{path}.device_id", device.server_id, int(device.device_id)) for path, device in table.places())
    return Reading(
        inventory=Inventory(placements=placements, cut=False, keys=unknown(table)),
        findings=[
            *header_findings(table.version, table.status, source, (VERSION,)),
            *cluster_findings(table, source),
            *repeated_devices(devices, source),
            *no_address_findings(((f"{path}.device_ip", device.device_ip) for path, device in table.places()), source),
        ],
    )


def placements_of(devices: Sequence[RoleDevice], role: Role) -> Iterator[Placement]:
    """One list, cut where the host changes."""
    for (host, super_pod), members in groupby(devices, lambda device: (device.server_id, device.super_pod_id)):
        placed = tuple(
            PlacedDevice(id=int(device.device_id), address=device.device_ip, keys=unknown(device)) for device in members
        )
        yield Placement(host=host, server_id=host, role=role, super_pod=super_pod, devices=placed)


def cluster_findings(table: VllmAscendTable, source: str) -> Iterator[Finding]:
    """cluster_id is the number of the device over both lists."""
    for number, (path, device) in enumerate(table.places(), start=1):
        if int(device.cluster_id) != number:
            fix = f'write "{number}": they count from 1 over both lists'
            yield Finding(source, f"{path}.cluster_id", "cluster-ids", f'cluster_id is "{device.cluster_id}"', fix)


def write(inventory: Inventory) -> str:
    """A vllm-ascend table's JSON text."""
    prefill, decode = inventory.of(Role.PREFILL), inventory.of(Role.DECODE)
    before_decode = sum(len(placement.devices) for placement in prefill)
    return render(
        VllmAscendTable(
            version=VERSION,
            server_count=str(len({placement.host for placement in inventory.working})),
            prefill_device_list=tuple(listed(prefill, 1)),
            decode_device_list=tuple(listed(decode, 1 + before_decode)),
            status=STATUS,
            **dict(inventory.keys),
        )
    )


def listed(placements: Sequence[Placement], first: int) -> Iterator[RoleDevice]:
    """One list; a device without an address of its own has its host's."""
    devices = ((placement, device) for placement in placements for device in placement.devices)
    for number, (placement, device) in enumerate(devices, start=first):
        pod = {} if placement.super_pod is None else {"super_pod_id": placement.super_pod}
        yield RoleDevice(
            server_id=placement.host,
            device_id=str(device.id),
            device_ip=device.address or placement.host,
            cluster_id=str(number),
            **pod,
            **dict(device.keys),
        )


VLLM_ASCEND = Format(
    name="vllm-ascend",
    title="a vllm-ascend table",
    says=frozenset({Kind.ROLE, Kind.SUPER_POD, Kind.DEVICE_KEY, Kind.TABLE_KEY}),
    needs=frozenset({"devices", "role"}),
    own=frozenset({"version", "server_count", "prefill_device_list", "decode_device_list", "status"})
    | {"server_id", "device_id", "device_ip", "cluster_id", "super_pod_id"},
    read=read,
    write=write,
)
