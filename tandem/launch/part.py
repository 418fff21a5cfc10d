"""The part that this process plays in a service: which entry of the global rank table it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tandem.errors import TopologyError
from tandem.protocol.identity import Seat
from tandem.topology.finding import Finding
from tandem.topology.local_table_rules import check_local_tables
from tandem.topology.rank_table import GlobalTable, Server, read_global_table, read_local_table, render
from tandem.topology.rank_table_codec import instance_name
from tandem.topology.rank_table_match import locate
from tandem.topology.rank_table_rules import check_global_table, devices_of
from tandem.topology.topology import Role


@dataclass(frozen=True, kw_only=True)
class Part:
    """One entry of a checked global table."""

    role: Role
    name: str
    """gateway, prefill-0, decode-1, …"""
    server: Server
    table: GlobalTable
    digest: str
    """Of the table; every part of a service has the same."""

    @property
    def host(self) -> str:
        """The table's address of this process."""
        return self.server.server_ip

    @property
    def seat(self) -> Seat:
        """What this process says of itself."""
        return seat_of(self.server, self.digest)

    @property
    def neighbours(self) -> int:
        """Devices of all instances of this host, its own among them."""
        return sum(len(server.device_ids) for _, _, server in devices_of(self.table) if server.server_ip == self.host)


def find_part(global_path: Path, local_path: Path) -> Part:
    """The part that a local table gives.

    Raises:
        TopologyError: A table breaks a rule, or the global one has no entry that is exactly the local one's.
    """
    table, local = read_global_table(global_path), read_local_table(local_path)
    _raise_first(check_global_table(table, source=str(global_path)))
    _raise_first(check_local_tables(table, {str(local_path): local}, complete=False, global_source=str(global_path)))
    place = locate(table, local, str(local_path))
    return Part(
        role=place.role,
        name=instance_name(place.role, place.position),
        server=local.server_list[0],
        table=table,
        digest=table_digest(table),
    )


def table_digest(table: GlobalTable) -> str:
    """16 hexadecimal digits that change with anything a table says, and not with how its file is laid out."""
    return hashlib.sha256(render(table).encode()).hexdigest()[:16]


def seat_of(server: Server, digest: str) -> Seat:
    """The seat of an entry of the table with this digest."""
    return Seat(host=server.server_ip, devices=server.device_ids, table=digest)


def _raise_first(findings: list[Finding]) -> None:
    if findings:
        raise TopologyError(str(findings[0]))
