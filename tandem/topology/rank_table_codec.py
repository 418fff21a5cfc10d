"""Between a Topology and a global rank table.

A rank table says host, devices and role. Ports, model and arguments are said elsewhere (NODE_PORTS and the launch
command), so reading takes them as parameters; what neither can say is refused by name when writing.
"""

from __future__ import annotations

from collections.abc import Sequence

from tandem.errors import TopologyError
from tandem.topology.rank_table import GlobalTable, Server, TableDevice, new_global_table
from tandem.topology.rank_table_rules import check_global_table
from tandem.topology.topology import Device, Instance, Role, Topology


def to_topology(
    global_table: GlobalTable, ports: Sequence[int], model: str, *, gateway_port: int | None = None
) -> Topology:
    """The Topology that a complete global table describes.

    Args:
        global_table: The table.
        ports: Port of each prefill, then each decode instance, in the order of the table (the NODE_PORTS of the
            documents).
        model: Model folder.
        gateway_port: Public port of the service entry.

    Raises:
        TopologyError: When the table breaks a rule, the ports do not fit the instances, or a prefill and a decode
            instance share a port.
    """
    if findings := check_global_table(global_table):
        raise TopologyError(str(findings[0]))
    prefill, decode = (len(global_table.servers(role)) for role in (Role.PREFILL, Role.DECODE))
    if len(ports) != prefill + decode:
        raise TopologyError(
            f"{len(ports)} ports for {prefill} prefill and {decode} decode instances; "
            "give one port each, prefill first, in the order of the global table"
        )
    if shared := sorted(set(ports[:prefill]) & set(ports[prefill:])):
        raise TopologyError(f"port {shared[0]} is used by prefill and by decode; give them different ports")
    return Topology(model=model, instances=instances_of(global_table, [gateway_port, *ports]))


def instances_of(global_table: GlobalTable, ports: Sequence[int | None] = ()) -> tuple[Instance, ...]:
    """The instances of a table, complete or not: scheduler, prefill, decode.

    Args:
        global_table: The table.
        ports: Their ports in this order; without, no instance has one.
    """
    roles = (Role.GATEWAY, Role.PREFILL, Role.DECODE)
    places = [(role, i, server) for role in roles for i, server in enumerate(global_table.servers(role))]
    known = ports or [None] * len(places)
    return tuple(
        instance_of(server, role, instance_name(role, i), port)
        for (role, i, server), port in zip(places, known, strict=True)
    )


def instance_of(server: Server, role: Role, name: str, port: int | None = None) -> Instance:
    """One entry of a table as an Instance."""
    devices = tuple(Device(id=int(device.device_id), address=device.device_ip) for device in server.device or ())
    return Instance(name=name, role=role, host=server.server_ip, port=port, devices=devices)


def instance_name(role: Role, position: int) -> str:
    """How an instance without a name of its own is called."""
    return "gateway" if role is Role.GATEWAY and position == 0 else f"{role}-{position}"


def from_topology(topology: Topology) -> GlobalTable:
    """The global table of a Topology.

    Raises:
        TopologyError: Naming the instance that a rank table cannot describe.
    """
    if not topology.of(Role.GATEWAY):
        raise TopologyError("the topology has no gateway, which a rank table needs; add an instance with role gateway")
    for instance in topology.instances:
        require_sayable(instance)
    return new_global_table(
        {role: [server_of(one) for one in topology.of(role)] for role in (Role.GATEWAY, Role.PREFILL, Role.DECODE)}
    )


def require_sayable(instance: Instance) -> None:
    """Refuse an instance that a rank table has no words for."""
    if instance.role is Role.BOTH:
        raise TopologyError(
            f"instance {instance.name} has role both, which a rank table cannot say; use prefill and decode instances"
        )
    if instance.role is not Role.GATEWAY and not instance.devices:
        raise TopologyError(f"instance {instance.name} has no devices, which a rank table must name; list its devices")


def server_of(instance: Instance) -> Server:
    """One Instance as an entry of a table; a device without an address of its own has its host's."""
    if instance.role is Role.GATEWAY:
        return Server(server_id=instance.host, server_ip=instance.host)
    devices = tuple(
        TableDevice(device_id=str(device.id), device_ip=device.address or instance.host, rank_id=str(rank))
        for rank, device in enumerate(instance.devices)
    )
    return Server(server_id=instance.host, server_ip=instance.host, device=devices)
