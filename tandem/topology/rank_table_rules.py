"""The rules of a global rank table, each a function that yields its findings.

A per-host table, before merging, need not hold a scheduler, prefill or decode instances: `complete=False` leaves out
the rules that ask for them. Rules about local tables are in local_table_rules.py.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator, Sequence

from tandem.topology.address import is_host, is_loopback
from tandem.topology.finding import Finding
from tandem.topology.rank_table import GROUP_IDS, STATUS, VERSION, GlobalTable, Server, ServerGroup
from tandem.topology.topology import Role


def check_global_table(table: GlobalTable, *, complete: bool = True, source: str = "global table") -> list[Finding]:
    """Every broken rule of a global table.

    Args:
        table: The table.
        complete: Whether it describes the whole service, not one host of it.
        source: How findings name the table.
    """
    return [
        *header_findings(table.version, table.status, source),
        *group_findings(table, complete, source),
        *count_findings(table.server_group_list, source),
        *scheduler_findings(table, source),
        *(missing_role_findings(table, source) if complete else ()),
        *(finding for path, role, server in devices_of(table) for finding in server_findings(path, server, source)),
        *repeated_devices(device_places(table), source),
        *localhost_findings(table, source),
        *(finding for path, _, server in table.entries() for finding in address_findings(path, server, source)),
    ]


def header_findings(version: str, status: str, source: str, versions: Sequence[str] = (VERSION,)) -> Iterator[Finding]:
    """Version and status, the same in global and local tables."""
    if version not in versions:
        fix = f"write {' or '.join(json.dumps(one) for one in versions)}"
        yield Finding(source, "$.version", "version", f'version is "{version}"', fix)
    if status != STATUS:
        yield Finding(
            source, "$.status", "status", f'status is "{status}"', f'wait for the table to be "{STATUS}", or write that'
        )


def group_findings(table: GlobalTable, complete: bool, source: str) -> Iterator[Finding]:
    """Exactly the groups 0, 1, 2, in this order; a table before merging may lack some."""
    found = [group.group_id for group in table.server_group_list]
    wanted = list(GROUP_IDS.values())
    allowed = wanted if complete else [group_id for group_id in wanted if group_id in found]
    if found != allowed:
        yield Finding(
            source,
            "$.server_group_list",
            "groups",
            f"holds the groups {', '.join(found) or 'none'}",
            f"write exactly three groups with ids {', '.join(wanted)}, in this order, an unused one empty",
        )


def count_findings(groups: Sequence[ServerGroup], source: str) -> Iterator[Finding]:
    """server_count is the length of server_list."""
    for i, group in enumerate(groups):
        if int(group.server_count) != len(group.server_list):
            yield Finding(
                source,
                f"$.server_group_list[{i}].server_count",
                "server-count",
                f'server_count is "{group.server_count}" but server_list holds {len(group.server_list)}',
                f'write "{len(group.server_list)}", or mend server_list',
            )


def scheduler_findings(table: GlobalTable, source: str) -> Iterator[Finding]:
    """One scheduler at most, and no devices with it."""
    schedulers = [(path, server) for path, role, server in table.entries() if role is Role.GATEWAY]
    for path, server in schedulers[1:]:
        yield Finding(
            source,
            path,
            "one-scheduler",
            f"{server.server_ip} is one scheduler too many",
            "keep one entry in group 0: only one host has the service entry",
        )
    for path, server in schedulers:
        if server.device is not None:
            yield Finding(
                source, f"{path}.device", "scheduler-devices", "the scheduler has devices", "remove the device key"
            )


def missing_role_findings(table: GlobalTable, source: str) -> Iterator[Finding]:
    """A complete table has a scheduler and at least one prefill and one decode instance."""
    fixes = {
        Role.GATEWAY: ("one-scheduler", "no scheduler", "generate one host's table with --api-server, then merge"),
        Role.PREFILL: ("prefill", "no prefill instance", "generate one with --prefill-server-list, then merge"),
        Role.DECODE: ("decode", "no decode instance", "generate one with --decode-server-list, then merge"),
    }
    positions = {group.group_id: i for i, group in enumerate(table.server_group_list)}
    for role, (rule, problem, fix) in fixes.items():
        if not table.servers(role):
            position = positions.get(GROUP_IDS[role])
            place = "" if position is None else f"[{position}].server_list"
            yield Finding(source, f"$.server_group_list{place}", rule, problem, fix)


def devices_of(table: GlobalTable) -> Iterator[tuple[str, Role, Server]]:
    """The prefill and decode instances with their paths and roles."""
    return (entry for entry in table.entries() if entry[1] is not Role.GATEWAY)


def server_findings(path: str, server: Server, source: str) -> Iterator[Finding]:
    """An instance has devices, and their ranks count 0, 1, 2 ..."""
    if not server.device:
        yield Finding(
            source, f"{path}.device", "devices", "the instance has no devices", "list device_id, device_ip and rank_id"
        )
    for rank, device in enumerate(server.device or ()):
        if int(device.rank_id) != rank:
            yield Finding(
                source,
                f"{path}.device[{rank}].rank_id",
                "rank-ids",
                f'rank_id is "{device.rank_id}"',
                f'write "{rank}": ranks count from 0 within an instance',
            )


def device_places(table: GlobalTable) -> Iterator[tuple[str, str, int]]:
    """Every device: JSON path, host, number."""
    for path, _, server in devices_of(table):
        for j, number in enumerate(server.device_ids):
            yield f"{path}.device[{j}].device_id", server.server_ip, number


def repeated_devices(devices: Iterable[tuple[str, str, int]], source: str) -> Iterator[Finding]:
    """A device of a host stands in one place; `devices` gives path, host and number of each."""
    owners: dict[tuple[str, int], str] = {}
    for path, host, number in devices:
        owner = owners.setdefault((host, number), path)
        if owner != path:
            problem = f"device {number} of {host} is also at {owner}"
            yield Finding(source, path, "device-once", problem, "give each device to one instance")


def localhost_findings(table: GlobalTable, source: str) -> Iterator[Finding]:
    """A name that means another host on every host has no place in a table of several."""
    entries = list(table.entries())
    if len({server.server_ip for _, _, server in entries}) < 2:
        return
    for path, _, server in entries:
        if is_loopback(server.server_ip):
            yield Finding(
                source,
                f"{path}.server_ip",
                "localhost",
                f"{server.server_ip} stands in a table of several hosts",
                "generate that host's table again with --local-ip and an address the others can reach",
            )


def address_findings(path: str, server: Server, source: str) -> Iterator[Finding]:
    """A server and its devices have addresses or names, which become parts of file names and of URLs."""
    places = ((f"{path}.device[{j}].device_ip", device.device_ip) for j, device in enumerate(server.device or ()))
    yield from no_address_findings([(f"{path}.server_ip", server.server_ip), *places], source)


def no_address_findings(places: Iterable[tuple[str, str | None]], source: str) -> Iterator[Finding]:
    """Every address that is none; `places` gives the path of each and its text.

    In addresses of devices an octet may be `**`, as tables are published.
    """
    for path, text in places:
        if text is not None and not is_host(text.replace("**", "1") if path.endswith(".device_ip") else text):
            problem = f"{reprlib.repr(text)} is no address or name of a host"
            yield Finding(source, path, "addresses", problem, "write it like 10.0.0.18, 2001:db8::7 or node-1")
