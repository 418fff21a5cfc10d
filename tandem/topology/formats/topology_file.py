"""Our own topology file (YAML) as a format."""

from __future__ import annotations

from typing import Any

from tandem.errors import TopologyError
from tandem.topology.file import parse_topology, render_topology
from tandem.topology.formats.format import Format, Reading
from tandem.topology.formats.inventory import Inventory, Kind, PlacedDevice, Placement
from tandem.topology.rank_table_codec import instance_name
from tandem.topology.topology import Device, Instance, Role, Topology


def read(text: str, source: str) -> Reading:
    """A topology; its rules are checked at once."""
    topology = parse_topology(text, source)
    positions = dict.fromkeys(Role, 0)
    placements = []
    for instance in topology.instances:
        placements.append(placement_of(instance, instance_name(instance.role, positions[instance.role])))
        positions[instance.role] += 1
    fields = topology.model_dump(mode="json", exclude={"instances"}, exclude_defaults=True)
    return Reading(inventory=Inventory(placements=tuple(placements), fields=fields))


def placement_of(instance: Instance, usual_name: str) -> Placement:
    """An instance; its name counts where it is not the one that would be given to it anyway."""
    fields = instance.model_dump(mode="json", exclude={"role", "host", "devices"}, exclude_defaults=True)
    if instance.name == usual_name:
        del fields["name"]
    return Placement(
        host=instance.host,
        server_id=instance.host,
        role=instance.role,
        devices=tuple(PlacedDevice(id=device.id, address=device.address) for device in instance.devices),
        fields=fields,
    )


def write(inventory: Inventory) -> str:
    """The topology's YAML text.

    Raises:
        TopologyError: When it would break a rule of topologies, such as having no decode instance.
    """
    instances: list[Instance] = []
    try:
        for placement in inventory.placements:
            role = placement.role or Role.BOTH
            position = sum(instance.role is role for instance in instances)
            instances.append(instance_of(placement, role, {"name": instance_name(role, position), **placement.fields}))
        return render_topology(Topology(instances=tuple(instances), **dict(inventory.fields)))
    except TopologyError as error:
        raise TopologyError(f"as a topology: {error}") from error


def instance_of(placement: Placement, role: Role, fields: dict[str, Any]) -> Instance:
    """A placement as an instance; a device that has its host's address needs none of its own."""
    devices = tuple(Device(id=device.id, address=device.address) for device in placement.devices)
    return Instance(role=role, host=placement.host, devices=devices, **fields)


TOPOLOGY = Format(
    name="topology",
    title="a topology file",
    says=frozenset({Kind.ROLE, Kind.BOTH, Kind.INSTANCES, Kind.SCHEDULER, Kind.TOPOLOGY_FIELD}),
    needs=frozenset({"role", "instances", "model"}),
    own=frozenset(),
    read=read,
    write=write,
)
