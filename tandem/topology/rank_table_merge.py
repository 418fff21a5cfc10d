"""Joins the global tables of several hosts into the one of the whole service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tandem.errors import TopologyError
from tandem.topology.address import is_loopback
from tandem.topology.finding import Finding
from tandem.topology.rank_table import GROUP_IDS, Entry, GlobalTable, Server, ServerGroup
from tandem.topology.rank_table_rules import check_global_table, devices_of
from tandem.topology.topology import Role

MERGED_NAME = "global_ranktable_merge.json"

Sources = Sequence[tuple[str, GlobalTable]]
"""How errors name each table (its file), and the table; in the order in which instances shall stand."""


def merge(tables: Sources) -> GlobalTable:
    """One complete global table; nothing is renumbered or dropped, a conflict is an error.

    Args:
        tables: Name and table of each host.

    Raises:
        TopologyError: When a table breaks a rule of its own, when versions differ, when there is not exactly one
            scheduler, when a host's device stands in two places, or when localhost stands beside other hosts.
    """
    if not tables:
        raise TopologyError("no rank table to merge; give --global-ranktable-list with at least one file")
    require_one_version(tables)
    require_one_scheduler(tables)
    for source, table in tables:
        raise_first(check_global_table(table, complete=False, source=source))
    require_instances(tables)
    require_distinct_devices(tables)
    require_reachable_hosts(tables)
    merged = joined(tables)
    raise_first(check_global_table(merged, source="merged table"))
    return merged


def joined(tables: Sources) -> GlobalTable:
    """The tables' groups put behind each other, unknown keys kept."""
    groups = []
    for position, group_id in enumerate(GROUP_IDS.values()):
        members = [
            (source, group)
            for source, table in tables
            for group in table.server_group_list
            if group.group_id == group_id
        ]
        servers = tuple(server for _, group in members for server in group.server_list)
        extra = unknown_keys(members, f"$.server_group_list[{position}]")
        count = str(len(servers))
        groups.append(ServerGroup(group_id=group_id, server_count=count, server_list=servers, **extra))
    first = tables[0][1]
    extra = unknown_keys(tables, "$")
    return GlobalTable(version=first.version, status=first.status, server_group_list=tuple(groups), **extra)


def unknown_keys(entries: Sequence[tuple[str, Entry]], path: str) -> dict[str, Any]:
    """The keys that only the files know, refusing two values for one key."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source, entry in entries:
        for key, value in (entry.model_extra or {}).items():
            if values.setdefault(key, value) != value:
                raise TopologyError(
                    f"{origins[key]} and {source}: {path}.{key} is {values[key]!r} and {value!r}; make both the same"
                )
            origins.setdefault(key, source)
    return values


def require_one_version(tables: Sources) -> None:
    """Refuse tables of different versions."""
    first_source, first = tables[0]
    for source, table in tables[1:]:
        if table.version != first.version:
            raise TopologyError(
                f'{first_source} and {source}: $.version is "{first.version}" and "{table.version}"; '
                "generate all tables with the same tool"
            )


def require_one_scheduler(tables: Sources) -> None:
    """Refuse tables with no or several service entries."""
    places = [f"{source} {path}" for source, path, role, _ in all_entries(tables) if role is Role.GATEWAY]
    if not places:
        files = ", ".join(source for source, _ in tables)
        raise TopologyError(f"no scheduler in {files}; generate the table of one host with --api-server")
    if len(places) > 1:
        raise TopologyError(
            f"{len(places)} schedulers: {', '.join(places)}; generate only one host's table with --api-server"
        )


def require_instances(tables: Sources) -> None:
    """Refuse tables that have no prefill or no decode instance between them."""
    there = {role for _, _, role, _ in all_entries(tables)}
    for role in (Role.PREFILL, Role.DECODE):
        if role not in there:
            files = ", ".join(source for source, _ in tables)
            fix = f"generate one with --{role}-server-list, and merge its table too"
            raise TopologyError(f"no {role} instance in {files}; {fix}")


def require_distinct_devices(tables: Sources) -> None:
    """Refuse a device of a host that stands in two tables."""
    owners: dict[tuple[str, int], str] = {}
    for source, table in tables:
        for path, _, server in devices_of(table):
            for j, number in enumerate(server.device_ids):
                place = f"{source} {path}.device[{j}]"
                owner = owners.setdefault((server.server_ip, number), place)
                if owner != place:
                    raise TopologyError(
                        f"device {number} of {server.server_ip} is at {owner} and at {place}; "
                        "give each device to one instance, and each file once"
                    )


def require_reachable_hosts(tables: Sources) -> None:
    """Refuse localhost beside other hosts."""
    if len({server.server_ip for _, _, _, server in all_entries(tables)}) < 2:
        return
    for source, path, _, server in all_entries(tables):
        if is_loopback(server.server_ip):
            raise TopologyError(
                f"{source}: {path}.server_ip is {server.server_ip} in a table of several hosts; "
                "generate it again with --local-ip and an address the others can reach"
            )


def loopback_warning(table: GlobalTable) -> str | None:
    """What to say of a service whose only host is called localhost: it is one, wherever the table is read."""
    names = sorted({server.server_ip for _, _, server in table.entries() if is_loopback(server.server_ip)})
    if not names:
        return None
    return (
        f"every instance is on {names[0]}, so the table holds on one host only; for several hosts, generate it again "
        "with --local-ip and an address the others can reach"
    )


def all_entries(tables: Sources) -> Iterator[tuple[str, str, Role, Server]]:
    """Every instance of every table: file, JSON path, role, entry."""
    return ((source, *entry) for source, table in tables for entry in table.entries())


def raise_first(findings: Sequence[Finding]) -> None:
    """Raise the first finding, if there is one."""
    if findings:
        raise TopologyError(str(findings[0]))
