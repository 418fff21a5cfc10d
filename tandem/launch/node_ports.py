"""NODE_PORTS: the ports of all prefill, then all decode instances, in the order of the global rank table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from tandem.errors import TopologyError, UsageError
from tandem.launch.part import Part
from tandem.launch.surroundings import NODE_PORTS
from tandem.topology.rank_table_codec import to_topology
from tandem.topology.topology import Instance, Role, Topology


def service_topology(part: Part, text: str, model: str, port: int) -> Topology:
    """The service as the scheduler sees it.

    Args:
        part: The scheduler's.
        text: NODE_PORTS.
        model: Model folder.
        port: The scheduler's own.

    Raises:
        UsageError: NODE_PORTS is missing, is no list of ports, has too few or too many, or one port has two roles.
    """
    ports = parse(text)
    if port in ports:
        raise UsageError(
            f"{NODE_PORTS}={text}: position {ports.index(port) + 1} is {port}, the scheduler's own --port; "
            "one port never serves two roles"
        )
    require_different(part, ports, text)
    try:
        return to_topology(part.table, ports, model, gateway_port=port or None)
    except TopologyError as error:
        raise UsageError(f"{NODE_PORTS}={text}: {error}") from None


def require_different(part: Part, ports: Sequence[int], text: str) -> None:
    """Refuse a port that stands for a prefill and a decode instance, or for two on one host.

    Raises:
        UsageError: With both positions.
    """
    places = [(role, server.server_ip) for role in (Role.PREFILL, Role.DECODE) for server in part.table.servers(role)]
    taken = list(enumerate(zip(ports, places, strict=False), 1))
    for (first, (port, (role, host))), (second, (other, (its, address))) in combinations(taken, 2):
        if port == other and role is not its:
            raise UsageError(
                f"{NODE_PORTS}={text}: positions {first} and {second} are both {port}, of a prefill and of a decode "
                "instance; one port never serves two roles"
            )
        if port == other and host == address:
            raise UsageError(
                f"{NODE_PORTS}={text}: positions {first} and {second} are both {port}, of two {role} instances on "
                f"{host}; give each its own"
            )


def instances_of(topology: Topology) -> tuple[Instance, ...]:
    """The instances in the order of NODE_PORTS."""
    return topology.of(Role.PREFILL) + topology.of(Role.DECODE)


def parse(text: str) -> list[int]:
    """`"8088,8089"` as `[8088, 8089]`.

    Raises:
        UsageError: It is empty, or something in it is no port.
    """
    if not text:
        raise UsageError(
            f"{NODE_PORTS}: is not set; export the --port of every prefill, then every decode instance, "
            "between commas, in the order of the global rank table"
        )
    parts = [part.strip() for part in text.split(",")]
    for position, part in enumerate(parts, 1):
        if not re.fullmatch("[0-9]{1,5}", part) or not 0 < int(part) < 2**16:
            raise UsageError(
                f"{NODE_PORTS}={text}: position {position} is {part!r}, which is no port; write it like 8088,8089"
            )
    return [int(part) for part in parts]
