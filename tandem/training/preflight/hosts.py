"""This host among the hosts of a run: its devices and their memory, and the way to the others."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

import torch

from tandem.parallel.collectives import INTERFACES
from tandem.parallel.device import DeviceName, choose_device, device_count, memory_of
from tandem.parallel.world import listen
from tandem.training.launch.ranks import Hosts
from tandem.training.plan.demand import Need
from tandem.training.plan.drawing import advice, gib
from tandem.training.preflight.finding import Remark, good, note, problem
from tandem.training.settings.config import Launch

PATIENCE_S = 5.0
"""For the first host to answer."""


def look_at_ranks(launch: Launch, device: DeviceName) -> Iterator[Remark]:
    """Whether every rank of this host has a device.

    Raises:
        UsageError: There is no device of the kind.
    """
    chosen, hosts = choose_device(device), Hosts.of(launch, device)
    count, kind = device_count(chosen), chosen.type
    says = f"{hosts.ranks} on this host, which is {hosts.rank} of {hosts.count}, on {kind}"
    if kind == "cpu":
        yield good(says)
    elif hosts.ranks > count:
        yield problem(f"{says}: {count} devices are visible; lower --ranks, or show the process more of them")
    elif hosts.ranks < count:
        yield note(f"{says}: {count - hosts.ranks} of {count} devices have nothing to do")
    else:
        yield good(f"{says}, each with a device of its own")


def look_at_memory(need: Need, launch: Launch, device: DeviceName) -> Iterator[Remark]:
    """Whether a rank's need fits, and whether it does beside what others hold now.

    Raises:
        UsageError: There is no device of the kind.
    """
    says = f"each rank needs {gib(need.plan.total)} GiB of {gib(need.capacity)}"
    if not need.fits:
        yield problem(f"{says}; {advice(need.change)}")
        return
    yield good(says)
    hosts, chosen = Hosts.of(launch, device), choose_device(device)
    # The ranks of a host share its memory; each has the whole of its device's.
    places = {"the host": (chosen, hosts.ranks)} if chosen.type == "cpu" else _devices(chosen.type, hosts.ranks)
    for name, (place, ranks) in places.items():
        free, _ = memory_of(place)
        if ranks * need.plan.total > free:
            yield problem(
                f"{name} has {gib(free)} GiB free now, and {gib(ranks * need.plan.total)} are needed; end what holds "
                "the rest"
            )


def look_at_meeting(launch: Launch, device: DeviceName, environment: Mapping[str, str]) -> Iterator[Remark]:
    """Whether the hosts will find each other.

    Raises:
        UsageError: The first host cannot listen at the address.
    """
    hosts = Hosts.of(launch, device)
    if not hosts.needs_processes:
        return
    yield from _interfaces(environment)
    if hosts.count == 1:
        yield good("the ranks of this host meet in a file")
        return
    place = f"MASTER_ADDR {hosts.master}, port {hosts.port}"
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(hosts.master, hosts.port, type=socket.SOCK_STREAM)}
    except OSError as error:
        yield problem(f"{place}: the name leads nowhere ({error.strerror}); name an address of the first host")
        return
    if hosts.rank == 0:
        listen(hosts.master, hosts.port).close()
        yield good(f"{place}: is this host's, and free")
    else:
        yield _reached(hosts, f"{place} ({', '.join(sorted(map(str, addresses)))})")


def _reached(hosts: Hosts, place: str) -> Remark:
    try:
        socket.create_connection((hosts.master, hosts.port), PATIENCE_S).close()
    except ConnectionRefusedError:
        return note(f"{place}: answers, and nobody listens there yet; that begins with the run of NODE_RANK 0")
    except OSError as error:
        return problem(
            f"{place}: does not answer ({error.strerror or error}); check the address, and that no firewall is between"
        )
    return good(f"{place}: somebody listens")


def _interfaces(environment: Mapping[str, str]) -> Iterator[Remark]:
    """Gloo's must exist as it is written; NCCL and HCCL have patterns of their own, with ^ and = and beginnings."""
    there = [name for _, name in socket.if_nameindex()]
    for variable in INTERFACES:
        wanted = environment.get(variable, "")
        if not wanted or wanted.startswith("^"):
            continue
        exact = variable.startswith("GLOO") or wanted.startswith("=")
        for name in wanted.removeprefix("=").split(","):
            bare = name.partition(":")[0]
            if not any(one == bare or (not exact and one.startswith(bare)) for one in there):
                yield problem(f"{variable} {name}: this host has no such interface; it has {', '.join(there)}")


def _devices(kind: str, ranks: int) -> dict[str, tuple[torch.device, int]]:
    return {f"{kind}:{number}": (torch.device(kind, number), 1) for number in range(ranks)}
