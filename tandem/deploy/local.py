"""A Topology as processes on this host: started in order, watched, and stopped without leaving any behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from tandem.deploy.command import instance_command, instance_environment
from tandem.deploy.health import is_ready
from tandem.deploy.port import port_is_free
from tandem.deploy.process import ChildProcess
from tandem.errors import ProcessError, UsageError
from tandem.topology.topology import Instance, Role, Topology

START_ORDER = (Role.PREFILL, Role.DECODE, Role.BOTH, Role.GATEWAY)

POLL_SECONDS = 0.1
PROGRESS_SECONDS = 5.0
STOP_GRACE = 15.0

CommandBuilder = Callable[[Topology, Instance], list[str]]


@dataclass(frozen=True)
class Progress:
    """How far a deployment is on its way to being ready."""

    ready: tuple[str, ...]
    waiting: tuple[str, ...]
    seconds: float
    """Since waiting began."""


class LocalDeployment:
    """The processes of a Topology on this host; start, wait, watch and stop are separate steps.

    Every child has a lifeline, so the end of this process, in whatever way, is the end of the children too.

    Args:
        topology: What to run; every instance has a port and an address of this host.
        log_dir: Folder for `<instance name>.log`, created where missing.
        command: Builds the command line of one instance.
    """

    def __init__(self, topology: Topology, log_dir: Path, command: CommandBuilder = instance_command) -> None:
        self.topology = topology
        self.log_dir = log_dir
        self._command = command
        self._instances = tuple(one for role in START_ORDER for one in topology.of(role))
        self._children: list[ChildProcess] = []
        self._stopping = Event()
        self._restart = Event()

    @property
    def pids(self) -> dict[str, int]:
        """Instance name -> process id, in order of start."""
        return {child.name: child.pid for child in self._children}

    def start(self) -> None:
        """Start all processes: prefill, decode, gateway. Does not wait for them to be ready.

        Raises:
            UsageError: When a port is missing or in use; nothing has been started then.
            ProcessError: When a process cannot be started; those before it are stopped.
        """
        if self._children or self._stopping.is_set():
            raise ProcessError("start: this deployment was started before; make a new LocalDeployment")
        for instance in self._instances:
            require_free_port(instance)
        require_different_side_channels(self._instances)
        commands = [self._command(self.topology, instance) for instance in self._instances]
        make_folder(self.log_dir)
        try:
            for instance, command in zip(self._instances, commands, strict=True):
                self._children.append(self._start(instance, command))
        except BaseException:
            self.stop(grace=0)
            raise

    def wait_ready(self, timeout: float, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Block until every instance answers GET /health with 200, or the deployment is stopped.

        Args:
            timeout: Seconds.
            on_progress: Called first, whenever an instance becomes ready, and every few seconds.

        Raises:
            ProcessError: When a process has ended, or not all are ready in time.
        """
        began = time.monotonic()
        told = float("-inf")
        waiting = {instance.name: instance for instance in self._instances}
        while not self._stopping.is_set():
            self._require_alive("starting")
            ready = [name for name, instance in waiting.items() if is_ready(instance)]
            for name in ready:
                del waiting[name]
            elapsed = time.monotonic() - began
            if on_progress and (ready or not waiting or elapsed - told >= PROGRESS_SECONDS):
                told = elapsed
                on_progress(self._progress(tuple(waiting), elapsed))
            if not waiting:
                return
            if elapsed > timeout:
                raise ProcessError(
                    f"starting: {', '.join(waiting)} not ready after {timeout:.0f} s; see the logs in {self.log_dir}"
                )
            self._stopping.wait(POLL_SECONDS)

    def watch(self, restart: Callable[[], None] | None = None) -> None:
        """Block until the deployment is stopped.

        Args:
            restart: What to do when `ask_for_restart` is called.

        Raises:
            ProcessError: As soon as a process ends by itself, whatever its exit code.
        """
        while not self._stopping.is_set():
            self.pause(POLL_SECONDS)
            if restart is not None and self._restart.is_set():
                self._restart.clear()
                restart()

    def pause(self, seconds: float) -> None:
        """Wait, or until the deployment is stopped.

        Raises:
            ProcessError: A process has ended by itself.
        """
        if not self._stopping.wait(seconds):
            self._require_alive("serving")

    def ask_for_restart(self) -> None:
        """Have the one that watches do what it does for a restart; may be called from a signal handler."""
        self._restart.set()

    def restart(self, url: str, grace: float = STOP_GRACE) -> None:
        """Stop one instance and start it again; does not wait for it to be ready.

        Args:
            url: Its base URL.
            grace: Seconds for it to end in order.

        Raises:
            UsageError: None of the instances has it, or its port was taken meanwhile.
            ProcessError: The process cannot be started.
        """
        place = next((i for i, one in enumerate(self._instances) if one.url == url), None)
        if place is None:
            raise UsageError(f"{url}: is no instance of this deployment; restart it where it was started")
        instance, child = self._instances[place], self._children[place]
        child.terminate()
        child.wait(grace)
        child.kill()
        child.wait(STOP_GRACE)
        child.release()
        require_free_port(instance)
        self._children[place] = self._start(instance, self._command(self.topology, instance), again=True)

    def _start(self, instance: Instance, command: list[str], *, again: bool = False) -> ChildProcess:
        log = self.log_dir / f"{instance.name}.log"
        environment = instance_environment(self.topology, instance)
        return ChildProcess.start(instance.name, command, log, environment, again=again)

    def stop(self, grace: float = STOP_GRACE) -> None:
        """Stop all processes: SIGTERM in reverse order of start, SIGKILL to what is left after the grace.

        May be called at any time, from a signal handler and repeatedly. A call while another is waiting, and a
        KeyboardInterrupt in it, kill at once.

        Args:
            grace: Seconds for the processes to end in order, all together.
        """
        hurry = self._stopping.is_set()
        self._stopping.set()
        try:
            if not hurry:
                self._end_in_order(grace)
        finally:
            self._kill_rest()

    def _end_in_order(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        for child in reversed(self._children):
            child.terminate()
        for child in reversed(self._children):
            child.wait(max(0.0, deadline - time.monotonic()))

    def _kill_rest(self) -> None:
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait(STOP_GRACE)
            child.release()

    def _require_alive(self, stage: str) -> None:
        for child in self._children:
            if not self._stopping.is_set() and child.poll() is not None:
                raise child.death(stage)

    def _progress(self, waiting: tuple[str, ...], seconds: float) -> Progress:
        ready = tuple(instance.name for instance in self._instances if instance.name not in waiting)
        return Progress(ready, waiting, seconds)


def make_folder(folder: Path) -> None:
    """Create a folder where it is missing.

    Raises:
        UsageError: When that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be created ({error.strerror}); choose a folder you may write to") from None


def require_different_side_channels(instances: Sequence[Instance]) -> None:
    """Refuse a `kv-port` that is another instance's on the same host, or any one's HTTP port.

    Raises:
        UsageError: Naming both instances.
    """
    taken = {(one.host, str(one.port)): f"{one.name}'s port" for one in instances}
    for one in instances:
        place = one.host, one.arguments.get("kv-port", "0")
        if place in taken:
            raise UsageError(f"{one.name}'s kv-port {place[1]} is {taken[place]}, too; give it another")
        if place[1] != "0":
            taken[place] = f"{one.name}'s kv-port"


def require_free_port(instance: Instance) -> None:
    """Refuse an instance whose port is missing or in use.

    Raises:
        UsageError: Naming the port, who needs it and what to do.
    """
    if instance.port is None:
        raise UsageError(f"instance {instance.name} has no port; give it one in the topology")
    if not port_is_free(instance.host, instance.port):
        raise UsageError(
            f"port {instance.port} on {instance.host}, needed by {instance.name}, is in use; "
            "stop what listens there or choose another port"
        )
