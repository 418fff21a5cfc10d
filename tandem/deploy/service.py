"""A whole service on this host: its topology from a few numbers, its run folder, and its life between signals."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from tandem.catalogue.source import served_name
from tandem.deploy.command import instance_command
from tandem.deploy.health import ANY_ADDRESS
from tandem.deploy.local import CommandBuilder, LocalDeployment, Progress
from tandem.deploy.port import free_ports, port_is_free, require_port_number
from tandem.errors import UsageError
from tandem.topology.topology import Engine, Instance, Role, Topology

READY_TIMEOUT = 1800.0
"""Seconds; a large model takes its time to load."""

INSTANCE_HOST = "127.0.0.1"
"""Only the gateway is reachable from outside; the instances behind it are not."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def local_topology(
    model: Path,
    *,
    prefill: int = 1,
    decode: int = 1,
    port: int = 9000,
    host: str = "127.0.0.1",
    served_model_name: str | None = None,
    engine: Engine = "native",
    arguments: Mapping[str, str] | None = None,
) -> Topology:
    """A service on this host, its instances on free ports.

    Args:
        model: Model folder.
        prefill: Number of prefill instances; 0 makes each of the others do both.
        decode: Number of decode instances.
        port: Public port of the gateway; 0 chooses a free one.
        host: Address the gateway listens on.
        served_model_name: Name clients use; the folder's name where None.
        engine: What runs the model.
        arguments: Further options of every instance but the gateway.

    Raises:
        UsageError: When the numbers make no service, or the port is in use.
    """
    if prefill < 0 or decode < 1:
        raise UsageError(
            f"{prefill} prefill and {decode} decode instances make no service; use --decode 1 or more, "
            "and --prefill 0 for instances that do both"
        )
    require_port_number(port)
    if port and not port_is_free(host, port):
        raise UsageError(f"port {port} on {host} is in use; stop what listens there or choose another with --port")
    gateway = Instance(name="gateway", role=Role.GATEWAY, host=host, port=port or free_ports(host, 1)[0])
    roles = [Role.PREFILL] * prefill + [Role.DECODE if prefill else Role.BOTH] * decode
    return Topology(
        model=str(model.resolve()),
        served_model_name=served_model_name or served_name(model),
        instances=(*instances_on_free_ports(roles, gateway, engine, arguments or {}), gateway),
    )


def instances_on_free_ports(
    roles: list[Role], gateway: Instance, engine: Engine, arguments: Mapping[str, str]
) -> Iterator[Instance]:
    """One instance for each role, on ports that are free and not the gateway's; vLLM needs two."""
    ports = (port for port in free_ports(INSTANCE_HOST, 2 * len(roles) + 1) if port != gateway.port)
    numbers = {role: count() for role in roles}
    for role in roles:
        yield Instance(
            name=f"{role}-{next(numbers[role])}",
            role=role,
            host=INSTANCE_HOST,
            port=next(ports),
            engine=engine,
            arguments={**arguments, **({"kv-port": str(next(ports))} if engine == "vllm" else {})},
        )


def reachable(topology: Topology) -> Instance:
    """The gateway, at an address that it can be asked on."""
    gateway = topology.of(Role.GATEWAY)[0]
    return gateway.model_copy(update={"host": ANY_ADDRESS.get(gateway.host, gateway.host)})


def new_run_directory(parent: Path, kind: str) -> Path:
    """Create and return `<parent>/<kind>-<timestamp>`, numbered on if that exists.

    Raises:
        UsageError: When it cannot be created.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        try:
            (folder := parent / f"{kind}-{stamp}{suffix}").mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"{folder}: cannot be created ({error.strerror}); choose a folder you may write to"
            ) from None
        return folder
    raise UsageError(f"{parent}: has too many folders {kind}-{stamp}; remove some")


@contextmanager
def running(
    topology: Topology,
    log_dir: Path,
    *,
    timeout: float = READY_TIMEOUT,
    on_progress: Callable[[Progress], None] | None = None,
    command: CommandBuilder = instance_command,
) -> Iterator[LocalDeployment]:
    """A deployment that is ready inside the `with` block and stopped after it, whatever ends the block.

    SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt inside the block; a second one, while stopping, kills at once.
    SIGUSR1 asks the deployment for a restart.

    Args:
        topology: What to run.
        log_dir: Folder for the logs.
        timeout: Seconds until all instances must be ready.
        on_progress: Called while waiting for them.
        command: Builds the command line of one instance.

    Raises:
        UsageError: When a port is in use.
        ProcessError: When a process ends before it is ready, or is not ready in time.
    """
    deployment = LocalDeployment(topology, log_dir, command)
    with interruptible(), restartable(deployment):
        try:
            deployment.start()
            deployment.wait_ready(timeout, on_progress)
            yield deployment
        finally:
            deployment.stop()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does; a signal that is ignored (nohup, a background job) stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return
    before = {one: signal.getsignal(one) for one in STOP_SIGNALS}
    for one, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(one, signal.default_int_handler)
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)


@contextmanager
def restartable(deployment: LocalDeployment) -> Iterator[None]:
    """SIGUSR1 asks a deployment for a restart, and never ends this process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda *_: deployment.ask_for_restart())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL if before is None else before)
