"""The documents' `pd_ranktable_tools.py`: their flags over our rank tables.

`--mode gen` and `--mode merge` have flags of their own; one that belongs to the other mode is refused. --local-ip and
--device-ip are ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tandem.errors import TandemError, UsageError
from tandem.topology import visible_devices
from tandem.topology.rank_table import read_global_table, write_table
from tandem.topology.rank_table_merge import MERGED_NAME, loopback_warning, merge
from tandem.topology.rank_table_set import generate, parse_device_addresses, parse_device_list

FLAGS = {
    "gen": ("api_server", "prefill_server_list", "decode_server_list", "local_ip", "device_ip"),
    "merge": ("global_ranktable_list",),
}
"""Mode -> the flags that have a meaning in it alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, the process's own by default; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    require_flags(parser, options)
    try:
        for path in save_generated(options) if options.mode == "gen" else save_merged(options):
            print(path)
    except TandemError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The documents' flags."""
    parser = argparse.ArgumentParser(
        prog="pd_ranktable_tools.py",
        description="Generate the rank tables of this host, or merge the global tables of several.",
        allow_abbrev=False,
    )
    parser.add_argument("--mode", choices=list(FLAGS), required=True, help="gen makes tables, merge joins global ones")
    parser.add_argument("--save-dir", type=Path, default=Path(), help="folder for the tables; here by default")
    gen = parser.add_argument_group("only with --mode gen")
    listed: dict[str, Any] = {"action": "extend", "nargs": "*"}  # given twice, both count
    gen.add_argument("--prefill-server-list", **listed, metavar="4,5", help="prefill instances by their devices")
    gen.add_argument("--decode-server-list", **listed, metavar="6,7", help="decode instances by their devices")
    gen.add_argument("--api-server", action="store_true", help="the service entry is on this host")
    gen.add_argument("--local-ip", help="address of this host; found out by default")
    gen.add_argument("--device-ip", **listed, metavar="4=ADDRESS", help="addresses of devices; asked by default")
    joining = parser.add_argument_group("only with --mode merge")
    joining.add_argument(
        "--global-ranktable-list", action="extend", nargs="+", type=Path, metavar="FILE", help="global tables"
    )
    return parser


def require_flags(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Leave with a message when a flag belongs to the other mode, or merge has nothing to merge."""
    other = "merge" if options.mode == "gen" else "gen"
    for name in FLAGS[other]:
        if getattr(options, name) not in (None, False):
            parser.error(
                f"--{name.replace('_', '-')} belongs to --mode {other}; leave it out with --mode {options.mode}"
            )
    if options.mode == "merge" and options.global_ranktable_list is None:
        parser.error("--mode merge needs --global-ranktable-list; name the global tables of all hosts after it")


def save_generated(options: argparse.Namespace) -> list[Path]:
    """This host's tables, written."""
    tables = generate(
        prefill=[parse_device_list(text) for text in options.prefill_server_list or ()],
        decode=[parse_device_list(text) for text in options.decode_server_list or ()],
        api_server=options.api_server,
        local_ip=options.local_ip,
        device_addresses=parse_device_addresses(options.device_ip or ()),
        device_files=visible_devices.DEV,
    )
    warn(*tables.warnings)
    return tables.save(options.save_dir)


def save_merged(options: argparse.Namespace) -> list[Path]:
    """The merged table, written."""
    path = options.save_dir / MERGED_NAME
    merged = merge([(str(one), read_global_table(one)) for one in options.global_ranktable_list])
    write_table(merged, path)
    if warning := loopback_warning(merged):
        warn(f"{path}: {warning}")
    return [path]


def warn(*warnings: str) -> None:
    """Say what may be wrong, each in one line."""
    for warning in warnings:
        print(f"pd_ranktable_tools.py: warning: {warning}", file=sys.stderr)
