"""Which instance of a global table a local table belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tandem.errors import TopologyError
from tandem.topology.finding import Finding
from tandem.topology.rank_table import GlobalTable, LocalTable, Server
from tandem.topology.topology import Role


@dataclass(frozen=True)
class Place:
    """An instance's place in a global table."""

    role: Role
    position: int
    """Index among the instances of its role."""
    path: str
    """JSON path of its entry."""


Key = tuple[str, tuple[int, ...], bool]
"""Host, device numbers, and whether it is the scheduler: by these an instance is found."""


class Places:
    """The instances of a global table, found by host and devices without a search through all of them."""

    def __init__(self, global_table: GlobalTable) -> None:
        self._places: dict[Key, tuple[Place, Server]] = {}
        positions = dict.fromkeys(Role, -1)
        for path, role, server in global_table.entries():
            positions[role] += 1
            self._places.setdefault(key_of(server, role), (Place(role, positions[role], path), server))

    def match(self, local_table: LocalTable, source: str) -> Place | Finding:
        """The instance that a local table belongs to, or why there is none."""
        path = "$.server_list[0]"
        if not local_table.server_list:
            return Finding(source, "$.server_list", "local-format", "is empty", "generate the table again")
        own = local_table.server_list[0]
        if (found := self._places.get(key_of(own, None if own.device_ids else Role.GATEWAY))) is None:
            devices = f"devices {', '.join(map(str, own.device_ids))}" if own.device_ids else "the service entry"
            problem = f"{own.server_ip} with {devices} is not in the global table"
            return Finding(source, path, "local-match", problem, "generate both tables in one run, then merge again")
        place, server = found
        difference = first_difference(plain(own), plain(server), path)
        return mismatch(source, place.path, *difference) if difference else place


def locate(global_table: GlobalTable, local_table: LocalTable, source: str = "local table") -> Place:
    """The instance that a local table belongs to; its role follows from the group it stands in.

    Args:
        global_table: The whole service.
        local_table: One instance's own table.
        source: How errors name the local table.

    Raises:
        TopologyError: When no entry of the global table, or one with other contents, matches.
    """
    place = Places(global_table).match(local_table, source)
    if isinstance(place, Finding):
        raise TopologyError(str(place))
    return place


def key_of(server: Server, role: Role | None) -> Key:
    """What an entry is found by; one without devices is the scheduler's."""
    return server.server_ip, server.device_ids, role is Role.GATEWAY


def mismatch(source: str, there: str, path: str, own: Any, other: Any) -> Finding:
    """The finding for a local table whose contents differ from its entry in the global table."""
    problem = f"is {own!r} here but {other!r} in the global table's entry {there}"
    return Finding(source, path, "local-match", problem, "make both the same, or generate both tables in one run")


def plain(server: Server) -> Any:
    """An entry as JSON data."""
    return server.model_dump(mode="json", exclude_unset=True)


def first_difference(one: Any, other: Any, path: str) -> tuple[str, Any, Any] | None:
    """JSON path and both values where two JSON values first differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = ((f"{path}.{key}", one[key], other[key]) for key in one)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = ((f"{path}[{i}]", left, right) for i, (left, right) in enumerate(zip(one, other, strict=True)))
    else:
        return None if one == other else (path, one, other)
    differences = (first_difference(left, right, place) for place, left, right in pairs)
    return next((difference for difference in differences if difference), None)
