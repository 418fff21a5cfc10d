from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tandem.deploy.local import CommandBuilder, LocalDeployment, Progress
from tandem.deploy.port import free_port, free_ports, port_is_free
from tandem.errors import ProcessError, UsageError
from tandem.topology.file import write_topology
from tandem.topology.topology import Instance, Role, Topology

Maker = Callable[..., Topology]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which nobody has waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def nothing_left(topology: Topology, pids: list[int]) -> bool:
    ports = (instance.port for instance in topology.instances)
    return not any(map(alive, pids)) and all(port_is_free("127.0.0.1", port) for port in ports if port)


def test_start_ready_stop(tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder) -> None:
    topology = one_of_each()
    deployment = LocalDeployment(topology, tmp_path / "logs", server_command)
    deployment.start()
    pids = list(deployment.pids.values())
    assert list(deployment.pids) == ["prefill-0", "decode-0", "gateway"]
    assert all(os.getsid(pid) == pid for pid in pids)
    progress: list[Progress] = []
    deployment.wait_ready(10, progress.append)
    assert progress[0].waiting
    assert progress[-1].ready == ("prefill-0", "decode-0", "gateway")
    assert progress[-1].waiting == ()
    with pytest.raises(ProcessError, match="started before"):
        deployment.start()
    deployment.stop()
    deployment.stop()
    assert nothing_left(topology, pids)
    for name in ("prefill-0", "decode-0", "gateway"):
        assert (tmp_path / "logs" / f"{name}.log").read_text() == f"{name} starts\n{name} ends\n"


def test_dead_child_is_named_by_watch(tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder) -> None:
    topology = one_of_each(decode="parent-decode")
    deployment = LocalDeployment(topology, tmp_path, server_command)
    deployment.start()
    pids = list(deployment.pids.values())
    try:
        deployment.wait_ready(10)
        grandchild = int((tmp_path / "parent-decode.log").read_text().split("grandchild ")[1])
        assert alive(grandchild)
        os.kill(deployment.pids["parent-decode"], signal.SIGKILL)
        with pytest.raises(ProcessError) as raised:
            deployment.watch()
    finally:
        deployment.stop()
    message = str(raised.value)
    assert message.startswith("serving: parent-decode was killed by SIGKILL (exit code -9); last lines of ")
    assert str(tmp_path / "parent-decode.log") in message
    assert "parent-decode starts" in message
    assert eventually(lambda: nothing_left(topology, [*pids, grandchild]))


def test_child_that_dies_before_it_is_ready(tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder) -> None:
    deployment = LocalDeployment(one_of_each(prefill="broken"), tmp_path, server_command)
    deployment.start()
    with pytest.raises(ProcessError) as raised:
        deployment.wait_ready(10)
    deployment.stop()
    message = str(raised.value)
    assert message.startswith("starting: broken ended with exit code 7; last lines of ")
    assert message.splitlines()[1:] == [f"  line {i}" for i in range(80, 100)]


def test_not_ready_in_time(tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder) -> None:
    deployment = LocalDeployment(one_of_each(gateway="never"), tmp_path, server_command)
    deployment.start()
    with pytest.raises(ProcessError, match=f"starting: never not ready after 1 s; .*{tmp_path}"):
        deployment.wait_ready(1.0)
    deployment.stop()


def test_program_that_does_not_exist(tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder) -> None:
    def command(topology: Topology, instance: Instance) -> list[str]:
        return ["/no/such/program"] if instance.role is Role.GATEWAY else server_command(topology, instance)

    topology = one_of_each()
    deployment = LocalDeployment(topology, tmp_path, command)
    with pytest.raises(ProcessError, match="starting: gateway cannot run `/no/such/program`"):
        deployment.start()
    assert nothing_left(topology, list(deployment.pids.values()))


def test_used_port_is_refused_before_anything_starts(
    tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder
) -> None:
    topology = one_of_each()
    deployment = LocalDeployment(topology, tmp_path / "logs", server_command)
    port = topology.of(Role.GATEWAY)[0].port
    with socket.create_server(("127.0.0.1", port or 0)):
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1, needed by gateway, is in use; .*another port"):
            deployment.start()
        assert deployment.pids == {}
        assert not (tmp_path / "logs").exists()


def test_missing_port_is_refused(tmp_path: Path, server_command: CommandBuilder) -> None:
    topology = Topology(model="m", instances=(Instance(name="b", role=Role.BOTH, host="127.0.0.1"),))
    with pytest.raises(UsageError, match="instance b has no port"):
        LocalDeployment(topology, tmp_path, server_command).start()


def test_stubborn_child_is_killed_with_its_group(
    tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder
) -> None:
    topology = one_of_each(prefill="stubborn-parent")
    deployment = LocalDeployment(topology, tmp_path, server_command)
    deployment.start()
    deployment.wait_ready(10)
    grandchild = int((tmp_path / "stubborn-parent.log").read_text().split("grandchild ")[1])
    pids = [*deployment.pids.values(), grandchild]
    began = time.monotonic()
    deployment.stop(grace=0.5)
    assert 0.4 < time.monotonic() - began < 3
    assert eventually(lambda: nothing_left(topology, pids))


def test_watch_returns_when_stopped_elsewhere(
    tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder
) -> None:
    deployment = LocalDeployment(one_of_each(), tmp_path, server_command)
    deployment.start()
    threading.Timer(0.3, deployment.stop).start()
    deployment.watch()
    assert eventually(lambda: nothing_left(deployment.topology, list(deployment.pids.values())))


PARENT = """
import sys
from pathlib import Path
from tandem.deploy.local import LocalDeployment
from tandem.deploy.service import running
from tandem.topology.file import read_topology

folder = Path(sys.argv[1])
def command(topology, instance):
    return [sys.executable, str(folder / "server.py"), instance.name, instance.host, str(instance.port)]
try:
    with running(read_topology(folder / "t.yaml"), folder / "logs", command=command) as deployment:
        print(*deployment.pids.values(), flush=True)
        deployment.watch()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def supervised(tmp_path: Path, topology: Topology) -> tuple[subprocess.Popen[str], list[int]]:
    """A parent process that runs a ready deployment, and the process ids of its children."""
    write_topology(topology, tmp_path / "t.yaml")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 3
    assert all(map(alive, pids))
    return parent, pids


def test_sigkill_of_the_parent_leaves_no_orphan(
    tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder
) -> None:
    topology = one_of_each(decode="stubborn")
    parent, pids = supervised(tmp_path, topology)
    with parent:
        parent.kill()
        assert eventually(lambda: nothing_left(topology, pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_in_order(
    tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder, number: signal.Signals
) -> None:
    topology = one_of_each()
    parent, pids = supervised(tmp_path, topology)
    with parent:
        parent.send_signal(number)
        output, error = parent.communicate(timeout=10)
    assert (output, error, parent.returncode) == ("stopped\n", "", 0)
    assert nothing_left(topology, pids)
    assert (tmp_path / "logs" / "prefill-0.log").read_text().endswith("prefill-0 ends\n")


def test_a_second_ctrl_c_kills_at_once(tmp_path: Path, one_of_each: Maker, server_command: CommandBuilder) -> None:
    topology = one_of_each(prefill="stubborn")
    parent, pids = supervised(tmp_path, topology)
    with parent:
        parent.send_signal(signal.SIGINT)
        assert eventually(lambda: not alive(pids[1]))
        assert alive(pids[0])
        began = time.monotonic()
        parent.send_signal(signal.SIGINT)
        output, error = parent.communicate(timeout=10)
    assert time.monotonic() - began < 5
    assert (output, error) == ("stopped\n", "")
    assert nothing_left(topology, pids)


def test_ports() -> None:
    assert len(set(free_ports("127.0.0.1", 20))) == 20
    port = free_port("127.0.0.1")
    assert port_is_free("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free("127.0.0.1", port)
    assert port_is_free("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "part"), [("192.0.2.7", "not an address of this machine"), ("no.such.host.invalid", "unknown")]
)
def test_ports_of_another_host_are_refused(host: str, part: str) -> None:
    with pytest.raises(UsageError, match=f"{host}.*{part}"):
        port_is_free(host, 9000)
    with pytest.raises(UsageError, match=f"{host}.*{part}"):
        free_port(host)
