"""Between a placement and an entry of the `server_list` of a global, local or MindIE table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tandem.errors import TopologyError
from tandem.topology.finding import Finding
from tandem.topology.formats.inventory import PlacedDevice, Placement
from tandem.topology.rank_table import Entry, Server, ServerGroup, TableDevice
from tandem.topology.topology import Role


def placement_of(server: Server, role: Role | None, group_keys: Mapping[str, Any] | None = None) -> Placement:
    """What an entry says; its rank ids are checked elsewhere and follow from the order."""
    devices = tuple(
        PlacedDevice(id=int(device.device_id), address=device.device_ip, keys=unknown(device))
        for device in server.device or ()
    )
    return Placement(
        host=server.server_ip,
        server_id=server.server_id,
        role=role,
        devices=devices,
        keys=unknown(server),
        group_keys=group_keys or {},
    )


def server_of(placement: Placement) -> Server:
    """A placement as an entry; a device without an address of its own has its host's."""
    devices = tuple(
        TableDevice(
            device_id=str(device.id), device_ip=device.address or placement.host, rank_id=str(rank), **device.keys
        )
        for rank, device in enumerate(placement.devices)
    )
    fields: dict[str, Any] = {"device": devices} if devices else {}
    return Server(server_id=placement.server_id, server_ip=placement.host, **fields, **placement.keys)


def unknown(entry: Entry) -> dict[str, Any]:
    """The keys that only the file knows."""
    return dict(entry.model_extra or {})


def empty_group_findings(groups: Sequence[ServerGroup], source: str) -> Iterator[Finding]:
    """What is said of a group without entries is said of nobody, and no other format could keep it."""
    for i, group in enumerate(groups):
        if not group.server_list and group.model_extra:
            key = next(iter(group.model_extra))
            problem = f"{key} is said of a group without entries"
            yield Finding(source, f"$.server_group_list[{i}].{key}", "empty-group", problem, "remove it")


def agreed(mappings: Iterable[Mapping[str, Any]], place: str) -> dict[str, Any]:
    """Keys that are written once for several, refusing two values for one.

    Raises:
        TopologyError: Naming the place, the key and both values.
    """
    values: dict[str, Any] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            if values.setdefault(key, value) != value:
                raise TopologyError(
                    f"{place}: {key} is {values[key]!r} and {value!r}, and there is room for one; "
                    f"make both the same, or leave it out with --leave-out {key}"
                )
    return values
