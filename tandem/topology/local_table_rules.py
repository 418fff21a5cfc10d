"""The rules of local rank tables, alone and against the global table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tandem.topology.finding import Finding
from tandem.topology.rank_table import GlobalTable, LocalTable
from tandem.topology.rank_table_match import Place, Places
from tandem.topology.rank_table_rules import (
    address_findings,
    devices_of,
    header_findings,
    repeated_devices,
    server_findings,
)


def check_local_tables(
    table: GlobalTable,
    local_tables: Mapping[str, LocalTable],
    *,
    complete: bool = True,
    global_source: str = "global table",
) -> list[Finding]:
    """Every broken rule of some local tables.

    Args:
        table: The global table they belong to.
        local_tables: How findings name each table -> the table.
        complete: Whether there should be a local table for every prefill and decode instance.
        global_source: How findings name the global table.
    """
    findings: list[Finding] = []
    owners: dict[str, str] = {}
    places = Places(table)
    for source, local_table in local_tables.items():
        findings += format_findings(local_table, source)
        place = places.match(local_table, source)
        if isinstance(place, Place):
            findings += duplicate_findings(place, owners.setdefault(place.path, source), source)
        else:
            findings.append(place)
    return findings + (list(missing_findings(table, owners, global_source)) if complete else [])


def format_findings(table: LocalTable, source: str) -> Iterator[Finding]:
    """A local table is group 0 with one server, whatever the instance's role."""
    yield from header_findings(table.version, table.status, source)
    if table.group_id != "0":
        yield Finding(source, "$.group_id", "local-format", f'group_id is "{table.group_id}"', 'write "0"')
    if table.server_count != "1":
        yield Finding(source, "$.server_count", "local-format", f'server_count is "{table.server_count}"', 'write "1"')
    if len(table.server_list) > 1:
        problem = f"server_list holds {len(table.server_list)} entries"
        yield Finding(source, "$.server_list", "local-format", problem, "keep the one entry of this instance")
    if table.server_list and table.server_list[0].device is not None:
        server = table.server_list[0]
        yield from server_findings("$.server_list[0]", server, source)
        paths = (f"$.server_list[0].device[{j}].device_id" for j in range(len(server.device_ids)))
        places = ((path, server.server_ip, number) for path, number in zip(paths, server.device_ids, strict=True))
        yield from repeated_devices(places, source)
    for i, server in enumerate(table.server_list):
        yield from address_findings(f"$.server_list[{i}]", server, source)


def duplicate_findings(place: Place, owner: str, source: str) -> Iterator[Finding]:
    """An instance has one local table."""
    if owner != source:
        problem = f"the global table's entry {place.path} already has the local table {owner}"
        yield Finding(source, "$.server_list[0]", "one-to-one", problem, "keep one of the two")


def missing_findings(table: GlobalTable, owners: Mapping[str, str], source: str) -> Iterator[Finding]:
    """Every prefill and decode instance has a local table."""
    for path, role, server in devices_of(table):
        if path not in owners:
            devices = ",".join(map(str, server.device_ids))
            problem = f"{role} instance on devices {devices} of {server.server_ip} has no local table"
            yield Finding(
                source, path, "one-to-one", problem, "give its table with --local, or generate it on that host"
            )
