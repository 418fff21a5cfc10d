"""The rank tables of one host: its part of the global table and a local table for each of its instances.

Names follow the documents:

    global_ranktable_<ip>.json         local_ranktable_<ip>_host.json     the service entry
    local_ranktable_<ip>_45.json       an instance on devices 4 and 5
    local_ranktable_<ip>_8_15.json     an instance with a device of two digits
    local_ranktable_<ip>_1_5.json      an instance on devices 1 and 5 beside one on device 15, which has _15
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem.errors import TopologyError
from tandem.topology.address import is_host, is_loopback, normal
from tandem.topology.device_address import HCCN_TOOL_PATH, USUAL_TOOL, addresses_of, hccn_tool, local_address
from tandem.topology.rank_table import (
    GlobalTable,
    LocalTable,
    Server,
    TableDevice,
    new_global_table,
    new_local_table,
    write_tables,
)
from tandem.topology.topology import Role
from tandem.topology.visible_devices import device_numbers, require_here


@dataclass(frozen=True, kw_only=True)
class RankTableSet:
    """A host's tables, with the file names they go by."""

    global_name: str
    global_table: GlobalTable
    local_tables: Mapping[str, LocalTable]
    """File name -> table: prefill instances, decode instances, service entry."""
    warnings: Sequence[str] = ()
    """What may be wrong with what was found out, each in one line."""

    @property
    def tables(self) -> dict[str, GlobalTable | LocalTable]:
        """File name -> table, the global one first."""
        return {self.global_name: self.global_table, **self.local_tables}

    def save(self, directory: Path) -> list[Path]:
        """Write every table into a folder, which is created where missing; returns the paths written."""
        return save([self], directory)


def save(sets: Iterable[RankTableSet], directory: Path) -> list[Path]:
    """Write the tables of some hosts into one folder, which is created where missing; returns the paths written."""
    tables = {directory / name: table for one in sets for name, table in one.tables.items()}
    write_tables(tables)
    return list(tables)


def generate(
    *,
    prefill: Sequence[Sequence[int]] = (),
    decode: Sequence[Sequence[int]] = (),
    api_server: bool = False,
    local_ip: str | None = None,
    device_addresses: Mapping[int, str] | None = None,
    device_files: Path | None = None,
) -> RankTableSet:
    """The tables of this host.

    Args:
        prefill: Device numbers of each prefill instance.
        decode: Device numbers of each decode instance.
        api_server: Whether the service entry runs on this host.
        local_ip: Address of this host; found out where None.
        device_addresses: Device number -> its address, for devices that need not be asked.
        device_files: Folder of this host's device files, among which each device must be where there are any; None
            compares with nothing.

    Raises:
        TopologyError: When nothing is asked for, a device is used twice, or an address cannot be found.
        UsageError: When a device is not here.
    """
    if not (prefill or decode or api_server):
        raise TopologyError("no instance to write; give --prefill-server-list, --decode-server-list or --api-server")
    require_each_device_once(prefill, decode)
    ip = checked_host(local_address() if local_ip is None else local_ip)
    numbers = [number for ids in (*prefill, *decode) for number in ids]
    if strangers := sorted(set(device_addresses or {}) - set(numbers)):
        raise TopologyError(f"--device-ip {strangers[0]}=...: no instance uses device {strangers[0]}; leave it out")
    if device_files is not None:
        require_here(numbers, os.environ, device_files)
    addresses = addresses_of(numbers, ip, device_addresses)
    servers = {
        Role.GATEWAY: [Server(server_id=ip, server_ip=ip)] if api_server else [],
        Role.PREFILL: [instance_server(ip, ids, addresses) for ids in prefill],
        Role.DECODE: [instance_server(ip, ids, addresses) for ids in decode],
    }
    return RankTableSet(
        global_name=f"global_ranktable_{ip}.json",
        global_table=new_global_table(servers),
        local_tables=named_local_tables([*servers[Role.PREFILL], *servers[Role.DECODE], *servers[Role.GATEWAY]]),
        warnings=[
            *(found_address_warnings(ip) if local_ip is None else ()),
            *missing_tool_warnings(set(numbers) - set(device_addresses or {}), ip, device_files),
        ],
    )


def found_address_warnings(ip: str) -> Iterator[str]:
    """What to say of an address that was found out and leads nowhere else."""
    if is_loopback(ip):
        yield (
            f"this host has no route to others, so its address in the tables is {ip}, which means another host "
            "wherever it is read; give the one that others reach with --local-ip"
        )


def missing_tool_warnings(asked: Collection[int], ip: str, device_files: Path | None) -> Iterator[str]:
    """What to say of NPUs whose addresses nothing here tells."""
    if asked and device_files is not None and device_numbers("npu", device_files) and hccn_tool() is None:
        yield (
            f"hccn_tool is neither on the PATH nor {USUAL_TOOL}, so each device_ip is the host's address, {ip}; "
            f"say where it is with {HCCN_TOOL_PATH}, or give the addresses with --device-ip"
        )


def instance_server(ip: str, device_ids: Sequence[int], addresses: Mapping[int, str]) -> Server:
    """A table's entry for an instance on some devices of one host."""
    devices = tuple(
        TableDevice(device_id=str(number), device_ip=addresses[number], rank_id=str(rank))
        for rank, number in enumerate(device_ids)
    )
    return Server(server_id=ip, server_ip=ip, device=devices)


def named_local_tables(servers: Sequence[Server]) -> dict[str, LocalTable]:
    """File name -> local table; instances whose names would be the same have `_` between their devices."""
    usual = Counter(local_table_name(server) for server in servers)
    return {
        local_table_name(server, apart=usual[local_table_name(server)] > 1): new_local_table(server)
        for server in servers
    }


def local_table_name(server: Server, *, apart: bool = False) -> str:
    """File name of an instance's local table; `apart` where another instance's would be the same."""
    return f"local_ranktable_{server.server_ip}_{device_suffix(server.device_ids, apart=apart) or 'host'}.json"


def device_suffix(device_ids: Sequence[int], *, apart: bool = False) -> str:
    """Device numbers as a file name carries them: `45`, or `8_15` as soon as one has two digits, or if `apart`."""
    separator = "_" if apart or any(number >= 10 for number in device_ids) else ""
    return separator.join(map(str, device_ids))


def require_each_device_once(prefill: Sequence[Sequence[int]], decode: Sequence[Sequence[int]]) -> None:
    """Refuse an instance without devices, and a device in two places."""
    owners: dict[int, str] = {}
    for kind, instances in (("prefill", prefill), ("decode", decode)):
        for position, device_ids in enumerate(instances):
            owner = f"{kind} instance {position}"
            if not device_ids:
                raise TopologyError(f"{owner} has no devices; list at least one device number")
            for number in device_ids:
                if number in owners:
                    raise TopologyError(
                        f"device {number} is in {owners[number]} and in {owner}; give each device to one instance, once"
                    )
                owners[number] = owner


def checked_host(host: str) -> str:
    """The host as it may stand in a table and in a file name: an address, or a name."""
    if not is_host(host):
        raise TopologyError(f"local ip {host!r} is no address or name of a host; give it as --local-ip 10.0.0.18")
    return normal(host)


def parse_device_list(text: str) -> list[int]:
    """`"4,5"` as `[4, 5]`.

    Raises:
        TopologyError: When it is not device numbers between commas.
    """
    if not re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5})*", text):
        raise TopologyError(f"device list {text!r} is not device numbers between commas; write it like 4,5")
    return [int(number) for number in text.split(",")]


def parse_device_address(text: str) -> tuple[int, str]:
    """`"4=10.0.0.22"` as `(4, "10.0.0.22")`.

    Raises:
        TopologyError: When it is not a device number, an equals sign and an address.
    """
    match = re.fullmatch(r"([0-9]{1,5})=(.+)", text)
    if not match or not is_host(match[2]):
        raise TopologyError(f"device address {text!r} is not NUMBER=ADDRESS; write it like 4=10.0.0.22")
    return int(match[1]), normal(match[2])


def parse_device_addresses(texts: Iterable[str]) -> dict[int, str]:
    """Device number -> its address.

    Raises:
        TopologyError: When a text is no NUMBER=ADDRESS, or two are for one device.
    """
    addresses: dict[int, str] = {}
    for number, address in map(parse_device_address, texts):
        if number in addresses:
            raise TopologyError(f"--device-ip {number}=... is given twice; keep one of the two")
        addresses[number] = address
    return addresses
