"""The Topology that a global rank table describes.

A rank table says host, devices and role. Ports, model and arguments are said elsewhere (NODE_PORTS and the launch
command), so they are parameters here. The way back, and to and from other formats, is in `formats`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tandem.errors import TopologyError
from tandem.topology.rank_table import GlobalTable, Server
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
    require_ports(ports, *(len(global_table.servers(role)) for role in (Role.PREFILL, Role.DECODE)))
    return Topology(model=model, instances=instances_of(global_table, [gateway_port, *ports]))


def require_ports(ports: Sequence[int], prefill: int, decode: int) -> None:
    """Refuse ports (the documents' NODE_PORTS) that are not one for each instance, or that both roles would use.

    Raises:
        TopologyError: Naming the numbers, or the port.
    """
    if len(ports) != prefill + decode:
        raise TopologyError(
            f"{len(ports)} ports for {prefill} prefill and {decode} decode instances; "
            "give one port each, prefill first, in the order of the global table"
        )
    if shared := sorted(set(ports[:prefill]) & set(ports[prefill:])):
        raise TopologyError(f"port {shared[0]} is used by prefill and by decode; give them different ports")


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
