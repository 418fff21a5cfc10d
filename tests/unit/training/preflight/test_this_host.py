from __future__ import annotations

import os
import resource
import socket
import time
from pathlib import Path

import pytest
import torch
from tiny import TINY

from tandem.training.plan.demand import Need
from tandem.training.plan.footing import Footing
from tandem.training.plan.memory import estimate
from tandem.training.preflight import hosts as hosts_room
from tandem.training.preflight.finding import Remark, findings
from tandem.training.preflight.hosts import look_at_meeting, look_at_memory, look_at_ranks
from tandem.training.preflight.machine import (
    look_at_clock,
    look_at_open_files,
    look_at_shared_memory,
    look_at_versions,
)
from tandem.training.settings.config import Launch


def met(launch: Launch, **environment: str) -> list[Remark]:
    """What is said of the meeting, errors as the problems they become."""
    found = findings({"hosts": lambda: look_at_meeting(launch, "cpu", environment)})
    return [finding.remark for finding in found]


def several(port: int, rank: int, master: str = "127.0.0.2") -> Launch:
    return Launch(nodes=2, node_rank=rank, master_addr=master, master_port=port)


@pytest.fixture
def taken() -> socket.socket:
    listening = socket.create_server(("127.0.0.2", 0))
    listening.listen()
    return listening


def test_the_first_host_needs_its_port(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    (remark,) = met(several(port, 0))
    assert remark.verdict == "problem"
    assert remark.text.startswith(f"MASTER_ADDR 127.0.0.2, port {port}: cannot be listened on (Address already in use)")
    taken.close()
    (remark,) = met(several(port, 0))
    assert remark == Remark("good", f"MASTER_ADDR 127.0.0.2, port {port}: is this host's, and free")


def test_another_host_looks_whether_the_first_answers(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    (remark,) = met(several(port, 1))
    assert remark.verdict == "good"
    taken.close()
    (remark,) = met(several(port, 1))
    assert remark.verdict == "note"
    assert "nobody listens there yet" in remark.text


def test_a_name_that_leads_nowhere(taken: socket.socket) -> None:
    taken.close()
    (remark,) = met(several(6000, 1, "nobody.invalid"))
    assert remark.verdict == "problem"
    assert remark.text.startswith("MASTER_ADDR nobody.invalid, port 6000: the name leads nowhere (")


def test_interfaces_that_are_named_must_be_there() -> None:
    two = Launch(ranks=2)
    assert [remark.verdict for remark in met(two, GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="l,lo:1")] == ["good"]
    bad = met(two, GLOO_SOCKET_IFNAME="l", HCCL_SOCKET_IFNAME="=enp67s0f5")
    assert [remark.verdict for remark in bad] == ["problem", "problem", "good"]
    assert bad[0].text.startswith("GLOO_SOCKET_IFNAME l: this host has no such interface; it has lo")
    assert met(Launch(), GLOO_SOCKET_IFNAME="nothing") == []  # a rank that is alone asks nobody


def test_every_rank_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.verdict for one in look_at_ranks(Launch(ranks=3), "cpu")] == ["good"]
    # Stand-ins: there is no machine with two devices where tests run.
    monkeypatch.setattr(hosts_room, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(hosts_room, "device_count", lambda device: 2)
    verdicts = {ranks: [one.verdict for one in look_at_ranks(Launch(ranks=ranks), "cuda")] for ranks in (1, 2, 3)}
    assert verdicts == {1: ["note"], 2: ["good"], 3: ["problem"]}
    (remark,) = look_at_ranks(Launch(ranks=3), "cuda")
    assert remark.text.startswith("3 on this host, which is 0 of 1, on cuda: 2 devices are visible; lower --ranks")


def test_memory_that_is_too_little_or_held_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = estimate(TINY, Footing(seq_length=8))
    fits = Need(plan=plan, ranks=1, capacity=2 * plan.total, change=None)
    assert fits.checkpoint == 3 * plan.weights
    assert [one.verdict for one in look_at_memory(fits, Launch(), "cpu")] == ["good"]
    (remark,) = look_at_memory(Need(plan=plan, ranks=1, capacity=plan.total - 1, change=None), Launch(), "cpu")
    assert remark.verdict == "problem"
    assert "nothing that leaves the result as it is would fit" in remark.text
    monkeypatch.setattr(hosts_room, "memory_of", lambda device: (plan.total + 1, 1 << 40))
    assert [one.verdict for one in look_at_memory(fits, Launch(ranks=1), "cpu")] == ["good"]
    assert [one.verdict for one in look_at_memory(fits, Launch(ranks=2), "cpu")] == ["good", "problem"]


def test_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        assert list(look_at_open_files(256)) == []
        (remark,) = look_at_open_files(257)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert remark.verdict == "problem"
    assert remark.text.endswith("run `ulimit -n 257`")


def test_shared_memory() -> None:
    (remark,) = look_at_shared_memory(Path("/proc"))  # a file system of no size
    assert remark.verdict == "problem"
    assert remark.text.startswith("/proc: has 0 bytes")


def test_a_clock_that_is_behind(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert list(look_at_clock([tmp_path / "data"])) == []
    assert list(look_at_clock([])) == []
    os.utime(tmp_path / "data", (time.time() + 3600, time.time() + 3600))
    (remark,) = look_at_clock([tmp_path / "data"])
    assert remark.verdict == "problem"
    assert remark.text.endswith("which is later than now; set this machine's clock")


def test_versions() -> None:
    (remark,) = look_at_versions()
    assert f"torch {torch.__version__}" in remark.text
