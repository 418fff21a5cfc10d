"""The rank tables of several hosts, made on each over ssh and joined here.

Each host runs `tandem ranktable gen --json`, which only prints; every table is written here. The words sent there are
numbers, commas, addresses and options, nothing that a shell could take for something else.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tandem.errors import ProcessError, TopologyError, printable
from tandem.topology.address import is_address, is_host
from tandem.topology.plain_data import json_object
from tandem.topology.rank_table import GlobalTable, LocalTable, parse_object
from tandem.topology.rank_table_set import RankTableSet, parse_device_list

USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
PROGRAM = re.compile(r"[A-Za-z0-9_./-]+")
TABLE_NAME = re.compile(r"(global|local)_ranktable_[A-Za-z0-9_.:%-]+\.json")
"""Another host names the files written here, so not any name will do."""
PATIENCE = 120.0
"""Seconds that a host may take; one with 16 devices asks hccn_tool 16 times."""
WARNING = "tandem: warning: "
"""How a line begins with which tandem warns on stderr."""
AT_ONCE = 16
"""ssh connections at a time."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one host is asked for."""

    host: str
    """As ssh takes it: an address or a name, with or without `user@`."""
    prefill: Sequence[str]
    """Device lists."""
    decode: Sequence[str]
    api_server: bool

    @property
    def words(self) -> list[str]:
        """The arguments of `tandem ranktable gen` there; an address is the host's own, a name it finds out itself."""
        address = address_of(self.host)
        return [
            *(("--prefill-server-list", *self.prefill) if self.prefill else ()),
            *(("--decode-server-list", *self.decode) if self.decode else ()),
            *(("--api-server",) if self.api_server else ()),
            *(("--local-ip", address) if is_address(address) else ()),
        ]


def shares(hosts: Sequence[str], prefill: Sequence[str], decode: Sequence[str], *, api_server: bool) -> list[Share]:
    """Each host's part; a list without `HOST=` before it is for every host, and the service entry is on the first.

    Raises:
        TopologyError: When there is no host, a host or a list is malformed, or a list is for a host that is not
            among them.
    """
    if not hosts:
        raise TopologyError("--hosts names no host; name those to ask after it, or leave it out to ask none")
    for host in hosts:
        user, at, address = host.rpartition("@")
        if not is_host(address) or (at and not USER.fullmatch(user)):
            raise TopologyError(f"host {host!r} is not an address or a name; write it like 10.0.0.18 or user@node-1")
    if twice := next((host for host in hosts if hosts.count(host) > 1), None):
        raise TopologyError(f"host {twice} is given twice; name each host once")
    asked = [
        Share(
            host=host,
            prefill=lists_of(host, prefill, hosts),
            decode=lists_of(host, decode, hosts),
            api_server=api_server and position == 0,
        )
        for position, host in enumerate(hosts)
    ]
    if idle := next((one.host for one in asked if not (one.prefill or one.decode or one.api_server)), None):
        raise TopologyError(f"host {idle} would have no instance; give it a device list, or leave it out of --hosts")
    return asked


def lists_of(host: str, lists: Sequence[str], hosts: Sequence[str]) -> list[str]:
    """The device lists that are for one host."""
    own = []
    for text in lists:
        named, separator, devices = text.rpartition("=")
        parse_device_list(devices)
        if separator and named not in hosts:
            raise TopologyError(f"device list {text!r} is for {named!r}, which --hosts does not name; mend one of them")
        if not separator or named == host:
            own.append(devices)
    return own


def gather(asked: Sequence[Share], program: str) -> list[RankTableSet]:
    """Every host's tables, asked for at the same time.

    Args:
        asked: What each host is asked for.
        program: The tandem command on the hosts.

    Raises:
        TopologyError: When `program` is no path, an answer holds no rank tables, or two hosts have one address.
        ProcessError: When a host cannot be reached, or its command fails.
    """
    if not PROGRAM.fullmatch(program):
        raise TopologyError(f"--remote-tandem {program!r} is not a path; write it like /opt/tandem/bin/tandem")
    with ThreadPoolExecutor(AT_ONCE) as threads:
        gathered = list(threads.map(lambda share: tables_of(share, program), asked))
    require_own_names(asked, gathered)
    return gathered


def require_own_names(asked: Sequence[Share], gathered: Sequence[RankTableSet]) -> None:
    """Refuse hosts whose tables have the names of another host's: both take the same address for theirs."""
    owners: dict[str, str] = {}
    for share, one in zip(asked, gathered, strict=True):
        for name in one.tables:
            if (owner := owners.setdefault(name, share.host)) != share.host:
                raise TopologyError(
                    f"{owner} and {share.host} both made {name}, so both have one address; "
                    "name them after --hosts by the addresses that others reach, each by its own"
                )


def tables_of(share: Share, program: str) -> RankTableSet:
    """One host's tables."""
    answer, said = ask(share, [program, "ranktable", "gen", "--json", *share.words])
    tables = json_object(answer, share.host)
    strange = [name for name, one in tables.items() if not (TABLE_NAME.fullmatch(name) and isinstance(one, dict))]
    if strange or not tables:
        named = strange[0] if strange else "nothing"
        raise TopologyError(f"{share.host}: answered {named}, no rank table; install the same tandem there")
    name, *local_names = tables
    return RankTableSet(
        global_name=name,
        global_table=parse_object(GlobalTable, tables[name], f"{share.host}: {name}"),
        local_tables={one: parse_object(LocalTable, tables[one], f"{share.host}: {one}") for one in local_names},
        warnings=[
            f"{share.host}: {printable(line.removeprefix(WARNING))}"
            for line in said.splitlines()
            if line.startswith(WARNING)
        ],
    )


def ask(share: Share, words: Sequence[str]) -> tuple[str, str]:
    """What a command on a host prints, and says on stderr; ssh asks for no password and takes no host for an option."""
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "--", share.host, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise ProcessError(f"{share.host}: no answer in {PATIENCE:.0f} s; check it with `ssh {share.host}`") from None
    except FileNotFoundError:
        raise ProcessError("ssh is not installed; install an OpenSSH client, or run gen on each host") from None
    if done.returncode == 0:
        return done.stdout, done.stderr
    raise ProcessError(f"{share.host}: {trouble(done)}")


def trouble(done: subprocess.CompletedProcess[str]) -> str:
    """What went wrong, by the exit codes of ssh (255) and of a shell without the command (127)."""
    said = printable(" ".join(done.stderr.split())[-300:])
    match done.returncode:
        case 255:
            return f"ssh failed ({said}); make `ssh` to it work without a password"
        case 127:
            return f"has no tandem on its PATH ({said}); install it there, or say where with --remote-tandem"
        case code:
            return f"exit code {code} ({said}); mend that there, or run gen on that host"


def address_of(host: str) -> str:
    """A host without its user."""
    return host.rpartition("@")[2]
