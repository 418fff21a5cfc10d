"""`tandem ranktable`: generate, merge, check, show and convert rank tables."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter

if TYPE_CHECKING:
    from tandem.topology.formats.supplement import Supplement

app = cyclopts.App(name="ranktable", help="Generate, merge, check, show and convert rank tables.")


@app.command
def gen(
    *,
    prefill_server_list: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    decode_server_list: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    api_server: Annotated[bool, Parameter(negative="")] = False,
    save_dir: Path = Path(),
    local_ip: str | None = None,
    device_ip: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    hosts: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    remote_tandem: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write the rank tables of this host: its global table, and a local one for each instance.

    With --hosts, those of several hosts, which are asked over ssh, and the merged table.

    Args:
        prefill_server_list: Prefill instances between spaces, each the device numbers it uses between commas.
        decode_server_list: Decode instances, written in the same way.
        api_server: The service entry is on this host; exactly one host of a service has it.
        save_dir: Folder for the tables, created where missing.
        local_ip: Address of this host; found out by default.
        device_ip: Addresses of devices as NUMBER=ADDRESS; by default asked from hccn_tool, else the host's.
        hosts: Hosts as ssh takes them, the one with the service entry first. A device list may have HOST= before it;
            it is then for that host only, else for each.
        remote_tandem: The tandem command on those hosts; `tandem` by default.
        json: Print the tables as JSON instead of writing them.
    """
    from json import dumps

    from tandem.errors import UsageError
    from tandem.topology import visible_devices
    from tandem.topology.rank_table_set import generate, parse_device_addresses, parse_device_list

    if hosts is not None:
        require_without(hosts="--hosts", local_ip=local_ip, device_ip=device_ip, json=json)
        program = "tandem" if remote_tandem is None else remote_tandem
        gather(hosts, prefill_server_list or [], decode_server_list or [], api_server, program, save_dir)
        return
    if remote_tandem is not None:
        raise UsageError("--remote-tandem is the command on other hosts; name them with --hosts, or leave it out")
    tables = generate(
        prefill=[parse_device_list(text) for text in prefill_server_list or ()],
        decode=[parse_device_list(text) for text in decode_server_list or ()],
        api_server=api_server,
        local_ip=local_ip,
        device_addresses=parse_device_addresses(device_ip or ()),
        device_files=visible_devices.DEV,
    )
    warn(*tables.warnings)
    if json:
        print(dumps({name: table.model_dump(exclude_unset=True) for name, table in tables.tables.items()}, indent=2))
        return
    for path in tables.save(save_dir):
        print(path)


@app.command
def merge(
    *,
    global_ranktable_list: Annotated[list[Path], Parameter(consume_multiple=True, negative="")],
    save_dir: Path = Path(),
) -> None:
    """Join the global tables of all hosts into global_ranktable_merge.json.

    Args:
        global_ranktable_list: Global tables between spaces, in the order the instances shall have.
        save_dir: Folder for the merged table, created where missing.
    """
    from tandem.topology.rank_table import read_global_table, write_table
    from tandem.topology.rank_table_merge import MERGED_NAME, loopback_warning
    from tandem.topology.rank_table_merge import merge as merge_tables

    merged = merge_tables([(str(path), read_global_table(path)) for path in global_ranktable_list])
    write_table(merged, save_dir / MERGED_NAME)
    if warning := loopback_warning(merged):
        warn(f"{save_dir / MERGED_NAME}: {warning}")
    print(save_dir / MERGED_NAME)


@app.command
def check(
    *,
    global_table: Annotated[Path, Parameter(name="--global")],
    local: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    partial: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Check rank tables against every rule; exit code 0 when they keep all, 3 when not.

    Args:
        global_table: The global table.
        local: Local tables between spaces; without them the global table is checked alone.
        partial: The tables are those of one host before merging, so roles and local tables may be missing.
        json: Print the findings as JSON.
    """
    from dataclasses import asdict
    from json import dumps

    from tandem.topology.rank_table_check import check_files

    findings = check_files(global_table, local or (), complete=not partial)
    if json:
        print(dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        print("\n".join(map(str, findings)) or f"{global_table}: keeps all rules")
    return 3 if findings else 0


@app.command
def show(
    file: Path,
    /,
    *,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Draw the hosts, instances, roles and devices of a rank table or a topology file.

    Args:
        file: A file in any of the formats that `convert` knows.
        from_: Its format; recognised from its contents by default.
        json: Print the instances as JSON.
    """
    from dataclasses import asdict
    from json import dumps

    from rich.console import Console

    from tandem.topology.drawing import draw, read_rows

    rows = read_rows(file, from_)
    if json:
        print(dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    else:
        Console().print(draw(str(file), rows))


@dataclass(frozen=True, kw_only=True)
class Added:
    """What a conversion is told beside the file."""

    role: Annotated[
        list[Literal["prefill", "decode", "both"]] | None, Parameter(consume_multiple=True, negative="")
    ] = None
    """Role of all instances, or of each in order."""
    instance_size: int | None = None
    """Devices of an instance, where the file has none."""
    scheduler: str | None = None
    """Host of the service entry."""
    controller: str | None = None
    """Host of MindIE's controller."""
    model: str | None = None
    """Model folder."""
    ports: str | None = None
    """Ports of prefill instances, then of decode instances, in order, between commas."""
    scheduler_port: int | None = None
    """Public port of the service entry."""

    def supplement(self) -> Supplement:
        """The same, understood."""
        from tandem.topology.formats.supplement import Supplement, parse_ports
        from tandem.topology.topology import Role

        fields = dict(vars(self))
        roles, ports = [Role(one) for one in fields.pop("role") or ()], fields.pop("ports")
        return Supplement(roles=roles, ports=() if ports is None else parse_ports(ports), **fields)


@app.command
def convert(
    file: Path,
    out: Path,
    /,
    *,
    to: str,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    leave_out: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    added: Annotated[Added, Parameter(name="*")] = Added(),
    local_tables: Path | None = None,
) -> None:
    """Write a rank table or a topology file in another format; what would be lost is refused by name.

    The formats: topology (YAML), global, local, hccl, mindie, vllm-ascend, one-click.

    Args:
        file: What to read.
        out: What to write.
        to: The format to write.
        from_: The format to read; recognised from the file's contents by default.
        leave_out: Names of what may be lost, as the refusal tells them.
        added: What the file does not say.
        local_tables: With --to global, a folder for the local tables that belong to it.
    """
    from tandem.topology.formats.convert import convert as converted
    from tandem.topology.formats.known import format_named, read_any
    from tandem.topology.formats.local_table import write_local_tables
    from tandem.topology.text_file import write_text

    target, supplement = format_named(to), added.supplement()
    inventory, text = converted(
        read_any(file, from_), str(file), target, leave_out=leave_out or (), supplement=supplement
    )
    written = [] if local_tables is None else write_local_tables(inventory, target, local_tables)
    write_text(out, text)
    print(*[out, *written], sep="\n")


def gather(
    hosts: list[str], prefill: list[str], decode: list[str], api_server: bool, remote_tandem: str, save_dir: Path
) -> None:
    """Make the tables of several hosts over ssh, and write them with the merged one."""
    from tandem.topology.rank_table import write_table
    from tandem.topology.rank_table_gathering import gather, shares
    from tandem.topology.rank_table_merge import MERGED_NAME, loopback_warning, merge
    from tandem.topology.rank_table_set import save

    asked = shares(hosts, prefill, decode, api_server=api_server)
    gathered = gather(asked, remote_tandem)
    merged = merge([(share.host, tables.global_table) for share, tables in zip(asked, gathered, strict=True)])
    warn(*(warning for tables in gathered for warning in tables.warnings))
    for path in save(gathered, save_dir):
        print(path)
    write_table(merged, save_dir / MERGED_NAME)
    if warning := loopback_warning(merged):
        warn(f"{save_dir / MERGED_NAME}: {warning}")
    print(save_dir / MERGED_NAME)


def warn(*warnings: str) -> None:
    """Say what may be wrong, each in one line."""
    for warning in warnings:
        print(f"tandem: warning: {warning}", file=sys.stderr)


def require_without(*, hosts: str, **others: object) -> None:
    """Refuse options that speak of this host beside one that speaks of others."""
    from tandem.errors import UsageError

    for name, value in others.items():
        if value not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} does not go with {hosts}; leave it out, or run gen on that host itself")
