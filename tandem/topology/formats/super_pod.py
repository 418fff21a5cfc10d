"""Super pods as HCCL and MindIE tables list them: which servers share a fabric of their own.

Source: CANN's HCCL rank table reference, version 1.2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from pydantic import ConfigDict

from tandem.topology.finding import Finding
from tandem.topology.formats.inventory import Placement
from tandem.topology.rank_table import Text
from tandem.topology.record import Record

PLAIN_VERSION, SUPER_POD_VERSION = "1.0", "1.2"
VERSIONS = (PLAIN_VERSION, SUPER_POD_VERSION)


def usual_version(super_pod_list: Sequence[SuperPod]) -> str:
    """The version of a table with these super pods."""
    return SUPER_POD_VERSION if super_pod_list else PLAIN_VERSION


class SuperPodServer(Record):
    """A server by its name in `server_list`."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    server_id: Text


class SuperPod(Record):
    """One super pod."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    super_pod_id: Text
    server_list: tuple[SuperPodServer, ...]


def pods_of(super_pod_list: Sequence[SuperPod]) -> dict[str, str]:
    """Server -> its super pod."""
    return {server.server_id: pod.super_pod_id for pod in super_pod_list for server in pod.server_list}


def stranger_findings(
    super_pod_list: Sequence[SuperPod], servers: Collection[str], path: str, source: str
) -> Iterator[Finding]:
    """A super pod is made of servers of the table, one at least, and a server is in one."""
    seen: set[str] = set()
    for i, pod in enumerate(super_pod_list):
        if not pod.server_list:
            problem = f"super pod {pod.super_pod_id} has no server"
            yield Finding(
                source, f"{path}.super_pod_list[{i}].server_list", "super-pods", problem, "list it, or remove the pod"
            )
        for j, server in enumerate(pod.server_list):
            place = f"{path}.super_pod_list[{i}].server_list[{j}].server_id"
            if server.server_id not in servers:
                problem = f"{server.server_id} is not in server_list"
                yield Finding(source, place, "super-pods", problem, "remove it, or list its devices")
            elif server.server_id in seen:
                problem = f"{server.server_id} is in two super pods"
                yield Finding(source, place, "super-pods", problem, "keep one of the two")
            seen.add(server.server_id)


def super_pods(placements: Sequence[Placement]) -> tuple[SuperPod, ...]:
    """The list for some placements; empty where none is in a super pod."""
    members: dict[str, dict[str, None]] = {}
    for placement in placements:
        if placement.super_pod is not None:
            members.setdefault(placement.super_pod, {})[placement.server_id] = None
    return tuple(
        SuperPod(super_pod_id=pod, server_list=tuple(SuperPodServer(server_id=server) for server in servers))
        for pod, servers in members.items()
    )
