"""The command line and environment that run one instance of a Topology."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from tandem.errors import UsageError
from tandem.topology.topology import Instance, Role, Topology
from tandem.topology.visible_devices import visible_devices

THREADS = "OMP_NUM_THREADS"

RANKS = "tensor-parallel-size"

TO_TANDEM = (RANKS, "device", "kv-host", "kv-port", "position", "prefill-ranks", "decode-ranks")
"""Arguments of a vLLM instance that `tandem vllm` takes; all others are flags of vLLM's own."""
FIELDS = ("role", "host", "port", "served-model-name")
"""What an instance's own fields say, or its topology's."""


def instance_command(topology: Topology, instance: Instance) -> list[str]:
    """`tandem instance` or `tandem gateway` with the options that the topology gives it.

    Raises:
        UsageError: When the instance has no port, or its arguments say what its fields say.
    """
    if instance.port is None:
        raise UsageError(f"instance {instance.name} has no port; give it one in the topology")
    for name in FIELDS:
        if name in instance.arguments:
            raise UsageError(f"instance {instance.name}: arguments hold {name}; say it beside them, not in them")
    part = gateway_part(topology) if instance.role is Role.GATEWAY else model_part(topology, instance)
    further = vllm_arguments(topology, instance) if instance.engine == "vllm" else options(instance.arguments)
    return [
        *(sys.executable, "-m", "tandem"),
        *part,
        *("--host", instance.host, "--port", str(instance.port)),
        *further,
    ]


def model_part(topology: Topology, instance: Instance) -> list[str]:
    """The subcommand of an instance that runs the model."""
    name = topology.served_model_name
    command = {"native": "instance", "vllm": "vllm"}[instance.engine]
    part = [command, topology.model, "--role", str(instance.role)]
    return [*part, "--served-model-name", name] if name else part


def vllm_arguments(topology: Topology, instance: Instance) -> list[str]:
    """What tells a vLLM instance its place in the service, its own arguments, and those that vLLM reads itself."""
    sides = {role: topology.of(role) for role in (Role.PREFILL, Role.DECODE, Role.BOTH)}
    position = list(chain.from_iterable(sides.values())).index(instance)
    sizes = {f"{role}-ranks": str(max(map(ranks, side))) for role, side in sides.items() if side and role != "both"}
    own = {name: value for name, value in instance.arguments.items() if name in TO_TANDEM}
    others = {name: value for name, value in instance.arguments.items() if name not in TO_TANDEM}
    place = {"position": str(position), **sizes}
    return [*options(place | own), "--", *options(others)]


def options(arguments: Mapping[str, str]) -> Iterator[str]:
    """A command line's options, each one word, so that a value may begin with a dash; without a value, a switch."""
    return (f"--{name}={value}" if value else f"--{name}" for name, value in arguments.items())


def gateway_part(topology: Topology) -> list[str]:
    """The subcommand of the gateway; instances with role both are decode instances that need no prefill."""
    decode = topology.of(Role.DECODE) or topology.of(Role.BOTH)
    return ["gateway", *urls("--prefill", topology.of(Role.PREFILL)), *urls("--decode", decode)]


def urls(option: str, instances: Iterable[Instance]) -> list[str]:
    """The option with each instance's URL."""
    return list(chain.from_iterable((option, instance.url) for instance in instances))


def instance_environment(topology: Topology, instance: Instance) -> dict[str, str]:
    """The devices it may see, in rank order, its share of the processors, and a log that is written line by line.

    Raises:
        UsageError: This machine has devices, but not all of the instance's.
    """
    on_cpu = instance.arguments.get("device") == "cpu"
    visible = {} if on_cpu else visible_devices([device.id for device in instance.devices], os.environ)
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
    given = instance.arguments.get(RANKS, "1")
    return int(given) if given.isdecimal() else 1
