"""`tandem topology`: see and change which instances a running gateway has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts
from cyclopts import Parameter

from tandem.cli.tls_options import ClientTls

if TYPE_CHECKING:
    from tandem.protocol.admin import TopologyState
    from tandem.protocol.admin_client import AdminClient

KEY = "TANDEM_ADMIN_KEY"

app = cyclopts.App(name="topology", help="See and change which instances a running gateway has.")


@dataclass(frozen=True, kw_only=True)
class Access(ClientTls):
    """How to reach the gateway."""

    gateway: str = "http://127.0.0.1:9000"
    """Its base URL."""
    key_file: Path | None = None
    """File with the admin key. Default: the key is taken from TANDEM_ADMIN_KEY."""


Reach = Annotated[Access | None, Parameter(name="*")]
Json = Annotated[bool, Parameter(negative="")]


@app.command
def show(*, access: Reach = None, json: Json = False) -> None:
    """Print the instances and how each is doing.

    Args:
        access: How to reach the gateway.
        json: Print it as JSON.
    """
    tell(client(access).topology(), json=json)


@app.command
def add(
    role: Literal["prefill", "decode", "both"],
    url: str,
    *,
    name: str | None = None,
    access: Reach = None,
    json: Json = False,
) -> None:
    """Add an instance; it gets requests once it has handed over.

    Args:
        role: What it is asked to do.
        url: Its base URL.
        name: How it is called. Default: the next free name of its role.
        access: How to reach the gateway.
        json: Print the instances as JSON.
    """
    tell(client(access).add(role, url, name), json=json)


@app.command
def drain(name: str, *, access: Reach = None, json: Json = False) -> None:
    """Give an instance no further requests; it finishes what it has.

    Args:
        name: Which one.
        access: How to reach the gateway.
        json: Print the instances as JSON.
    """
    tell(client(access).drain(name), json=json)


@app.command
def undrain(name: str, *, access: Reach = None, json: Json = False) -> None:
    """Give a drained instance requests again, once it has handed over.

    Args:
        name: Which one.
        access: How to reach the gateway.
        json: Print the instances as JSON.
    """
    tell(client(access).undrain(name), json=json)


@app.command
def remove(
    name: str, *, now: Annotated[bool, Parameter(negative="")] = False, access: Reach = None, json: Json = False
) -> None:
    """Take an instance out when it has finished what it has.

    Args:
        name: Which one.
        now: Do not wait; what it has goes on elsewhere.
        access: How to reach the gateway.
        json: Print the instances as JSON.
    """
    tell(client(access).remove(name, now=now), json=json)


@app.command
def restart(
    *names: str,
    command: str,
    drain_seconds: float = 300.0,
    start_seconds: float = 1800.0,
    access: Reach = None,
) -> None:
    """Start instances again, one after the other, while the others serve.

    Each is drained, then the command is run, which has to stop and start it, and the next one follows when it serves
    again. What `tandem serve` has started is restarted by `kill -USR1` to that process instead.

    Args:
        names: Which ones. Default: all.
        command: Command for one instance, such as 'systemctl restart tandem-{name}'. {name}, {url} and {role} in it
            are replaced; no shell reads it.
        drain_seconds: Longest wait for what an instance has; what is left goes on elsewhere.
        start_seconds: Longest wait until it serves again.
        access: How to reach the gateway.
    """
    from tandem.cli.serve import say
    from tandem.deploy.restart_command import RestartCommand
    from tandem.deploy.rolling import RollingRestart

    RollingRestart(
        admin=client(access), restart=RestartCommand(command), say=say, drain_s=drain_seconds, start_s=start_seconds
    ).run(names)


def client(access: Access | None) -> AdminClient:
    """The gateway, with the key that nobody else on this host sees in a command line."""
    from tandem.errors import UsageError
    from tandem.files import read_bytes
    from tandem.protocol.admin_client import AdminClient

    access = access or Access()
    file = access.key_file
    key = os.environ.get(KEY, "") if file is None else read_bytes(file, UsageError).decode(errors="replace").strip()
    if not (key.isascii() and key.isprintable() and key):
        place = KEY if file is None else str(file)
        raise UsageError(f"{place}: holds no key; make one with `tandem gateway-key`, or name its file with --key-file")
    return AdminClient(access.gateway, key, access.files)


def tell(topology: TopologyState, *, json: bool) -> None:
    """Print the instances, as a table for people."""
    import msgspec

    if json:
        print(msgspec.json.format(msgspec.json.encode(topology)).decode())
        return
    head = ("name", "role", "state", "in flight", "breaker", "version", "url")
    rows = [head] + [
        (
            one.name,
            one.role,
            f"{one.state}, leaving" if one.leaving else one.state,
            str(one.in_flight),
            one.breaker,
            one.version or "",
            one.url,
        )
        for one in topology.workers
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"epoch {topology.epoch}")
    for one in topology.workers:
        if one.remark:
            print(f"{one.name}: {one.remark}")
