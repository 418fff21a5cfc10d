"""The command line and environment that run one instance of a Topology."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import chain

from tandem.errors import UsageError
from tandem.topology.topology import Instance, Role, Topology

DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
"""What CUDA and CANN read to see only some devices; each ignores the other's."""

THREADS = "OMP_NUM_THREADS"


def instance_command(topology: Topology, instance: Instance) -> list[str]:
    """`tandem instance` or `tandem gateway` with the options that the topology gives it.

    Raises:
        UsageError: When the instance has no port.
    """
    if instance.port is None:
        raise UsageError(f"instance {instance.name} has no port; give it one in the topology")
    return [
        *(sys.executable, "-m", "tandem"),
        *(gateway_part(topology) if instance.role is Role.GATEWAY else model_part(topology, instance)),
        *("--host", instance.host, "--port", str(instance.port)),
        *chain.from_iterable((f"--{name}", value) for name, value in instance.arguments.items()),
    ]


def model_part(topology: Topology, instance: Instance) -> list[str]:
    """The subcommand of an instance that runs the model."""
    name = topology.served_model_name
    part = ["instance", topology.model, "--role", str(instance.role)]
    return [*part, "--served-model-name", name] if name else part


def gateway_part(topology: Topology) -> list[str]:
    """The subcommand of the gateway; instances with role both are decode instances that need no prefill."""
    decode = topology.of(Role.DECODE) or topology.of(Role.BOTH)
    return ["gateway", *urls("--prefill", topology.of(Role.PREFILL)), *urls("--decode", decode)]


def urls(option: str, instances: Iterable[Instance]) -> list[str]:
    """The option with each instance's URL."""
    return list(chain.from_iterable((option, instance.url) for instance in instances))


def instance_environment(topology: Topology, instance: Instance) -> dict[str, str]:
    """The devices it may see, in rank order, its share of the processors, and a log that is written line by line."""
    devices = ",".join(str(device.id) for device in instance.devices)
    visible = dict.fromkeys(DEVICE_VARIABLES, devices) if devices else {}
    computing = sum(ranks(one) for one in topology.instances if one.role is not Role.GATEWAY)
    return {"PYTHONUNBUFFERED": "1", **thread_share(computing), **visible}


def thread_share(processes: int) -> dict[str, str]:
    """Processors for each of the computing processes of a host, unless the user has decided.

    Processes that all take every processor spend their time waiting for each other's threads: tens of times slower.
    """
    if THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, len(os.sched_getaffinity(0)) // max(1, processes)))}


def ranks(instance: Instance) -> int:
    """How many processes share an instance's model; a value that is no number is the instance's to refuse."""
    given = instance.arguments.get("tensor-parallel-size", "1")
    return int(given) if given.isdecimal() else 1
