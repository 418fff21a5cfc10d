"""`tandem ranktable`: generate, merge, check and show rank tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

app = cyclopts.App(name="ranktable", help="Generate, merge, check and show rank tables.")


@app.command
def gen(
    *,
    prefill_server_list: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    decode_server_list: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    api_server: Annotated[bool, Parameter(negative="")] = False,
    save_dir: Path = Path(),
    local_ip: str | None = None,
    device_ip: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
) -> None:
    """Write the rank tables of this host: its global table, and a local one for each instance.

    Args:
        prefill_server_list: Prefill instances between spaces, each the device numbers it uses between commas.
        decode_server_list: Decode instances, written in the same way.
        api_server: The service entry is on this host; exactly one host of a service has it.
        save_dir: Folder for the tables, created where missing.
        local_ip: Address of this host; found out by default.
        device_ip: Addresses of devices as NUMBER=ADDRESS; by default asked from hccn_tool, else the host's.
    """
    from tandem.topology.rank_table_set import generate, parse_device_address, parse_device_list

    tables = generate(
        prefill=[parse_device_list(text) for text in prefill_server_list or ()],
        decode=[parse_device_list(text) for text in decode_server_list or ()],
        api_server=api_server,
        local_ip=local_ip,
        device_addresses=dict(parse_device_address(text) for text in device_ip or ()),
    )
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
    from tandem.topology.rank_table_merge import MERGED_NAME
    from tandem.topology.rank_table_merge import merge as merge_tables

    merged = merge_tables([(str(path), read_global_table(path)) for path in global_ranktable_list])
    write_table(merged, save_dir / MERGED_NAME)
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
def show(file: Path, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Draw the hosts, instances, roles and devices of a rank table or a topology file.

    Args:
        file: A global or local rank table (JSON), or a topology (YAML).
        json: Print the instances as JSON.
    """
    from dataclasses import asdict
    from json import dumps

    from rich.console import Console

    from tandem.topology.drawing import draw, read_rows

    rows = read_rows(file)
    if json:
        print(dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    else:
        Console().print(draw(str(file), rows))
