from __future__ import annotations

import os
import socket
import sys
from functools import partial
from pathlib import Path

import pytest

from tandem.cli import run
from tandem.deploy import command
from tandem.deploy.command import instance_command, instance_environment
from tandem.deploy.port import free_port
from tandem.deploy.service import local_topology, new_run_directory
from tandem.errors import UsageError
from tandem.topology.topology import Device, Instance, Role, Topology
from tandem.topology.visible_devices import visible_devices


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_topology_of_prefill_and_decode(model: Path) -> None:
    port = free_port("127.0.0.1")
    topology = local_topology(model, prefill=2, decode=1, port=port)
    assert [i.name for i in topology.instances] == ["prefill-0", "prefill-1", "decode-0", "gateway"]
    assert topology.of(Role.GATEWAY)[0].port == port
    assert len({i.port for i in topology.instances}) == 4
    assert (topology.model, topology.served_model_name) == (str(model), "tiny")


def test_every_instance_but_the_gateway_gets_the_arguments(model: Path) -> None:
    topology = local_topology(model, port=0, arguments={"device": "cpu"})
    assert [i.arguments for i in topology.instances] == [{"device": "cpu"}, {"device": "cpu"}, {}]


def test_no_prefill_means_instances_that_do_both(model: Path) -> None:
    topology = local_topology(model, prefill=0, decode=2, port=0, served_model_name="x")
    assert [i.role for i in topology.instances] == [Role.BOTH, Role.BOTH, Role.GATEWAY]
    assert topology.served_model_name == "x"


@pytest.mark.parametrize(("prefill", "decode"), [(0, 0), (1, 0), (-1, 1), (1, -1)])
def test_numbers_that_make_no_service(model: Path, prefill: int, decode: int) -> None:
    with pytest.raises(UsageError, match=f"{prefill} prefill and {decode} decode .*--decode 1"):
        local_topology(model, prefill=prefill, decode=decode, port=0)


def test_port_that_does_not_exist(model: Path) -> None:
    with pytest.raises(UsageError, match="port 70000 does not exist"):
        local_topology(model, port=70000)


def test_used_gateway_port_is_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(model), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is in use" in error
    assert "--port" in error
    assert not (model.parent / "runs").exists()


def test_run_directories_are_never_shared(tmp_path: Path) -> None:
    folders = {new_run_directory(tmp_path / "runs", "serve") for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.is_dir() and folder.name.startswith("serve-") for folder in folders)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be created"):
        new_run_directory(tmp_path / "file" / "runs", "serve")


def topology(*instances: Instance) -> Topology:
    return Topology(model="/m", served_model_name="name", instances=instances)


P = Instance(name="p", role=Role.PREFILL, host="::1", port=1, arguments={"max-num-seqs": "8"}, devices=(Device(id=4),))
D = Instance(name="d", role=Role.DECODE, host="h", port=2)
B = Instance(name="b", role=Role.BOTH, host="h", port=3)
G = Instance(name="g", role=Role.GATEWAY, host="0.0.0.0", port=4)


@pytest.mark.parametrize(
    ("one", "instance", "line"),
    [
        (topology(P, D, G), P,
         "instance /m --role prefill --served-model-name name --host ::1 --port 1 --max-num-seqs=8"),
        (topology(P, D, G), G, "gateway --prefill http://[::1]:1 --decode http://h:2 --host 0.0.0.0 --port 4"),
        (topology(B, G), B, "instance /m --role both --served-model-name name --host h --port 3"),
        (topology(B, G), G, "gateway --decode http://h:3 --host 0.0.0.0 --port 4"),
    ],
)  # fmt: skip
def test_commands(one: Topology, instance: Instance, line: str) -> None:
    assert instance_command(one, instance) == [sys.executable, "-m", "tandem", *line.split()]


def test_devices_are_made_visible_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = topology(P, D, G)
    monkeypatch.setattr(command, "visible_devices", partial(visible_devices, folder=tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in instance_environment(one, P)
    for number in (2, 4):
        (tmp_path / f"nvidia{number}").touch()
    assert instance_environment(one, P)["CUDA_VISIBLE_DEVICES"] == "1"
    on_cpu = P.model_copy(update={"arguments": {"device": "cpu"}})
    assert "CUDA_VISIBLE_DEVICES" not in instance_environment(topology(on_cpu, D, G), on_cpu)


@pytest.mark.parametrize("name", ["role", "host", "port", "served-model-name"])
def test_arguments_do_not_say_what_fields_say(name: str) -> None:
    one = D.model_copy(update={"arguments": {name: "x"}})
    with pytest.raises(UsageError, match=f"instance d: arguments hold {name}; say it beside them, not in them"):
        instance_command(topology(P, one, G), one)


def with_ranks(instance: Instance, ranks: int | str) -> Instance:
    return instance.model_copy(update={"arguments": {"tensor-parallel-size": str(ranks)}})


@pytest.mark.parametrize(
    ("one", "share"),
    [
        (topology(P, D, G), 6),
        (topology(with_ranks(P, 2), D, G), 4),
        (topology(with_ranks(P, 4), with_ranks(D, 2), G), 2),
        (topology(with_ranks(P, 99), D, G), 1),
        (topology(with_ranks(P, "two"), D, G), 6),
    ],
)
def test_processors_are_shared_by_all_ranks_unless_the_user_decided(
    one: Topology, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert instance_environment(one, one.instances[0])["OMP_NUM_THREADS"] == str(share)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in instance_environment(one, one.instances[0])
