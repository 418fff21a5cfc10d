"""`tandem serve` as a user runs it: it answers, and however it ends, nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tandem.topology.file import read_topology
from tandem.topology.topology import Role

PATIENCE = 90.0
"""Seconds; three processes import torch on a machine that runs other tests too."""


@contextmanager
def serving(model: Path, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A service that is ready; killed at the end if a test left it."""
    command = [sys.executable, "-m", "tandem", "serve", str(model), "--port", "0", "--run-dir", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0)
    assert process.stdout is not None
    try:
        with process.stdout:
            for line in process.stdout:
                if line.startswith("ready:"):
                    break
            yield process
    finally:
        process.kill()
        process.wait()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def listening(host: str, port: int | None) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def test_it_answers_under_its_name_and_role_and_ends_at_ctrl_c(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path, "--served-model-name", "mine") as process:
        topology = read_topology(tmp_path / "topology.yaml")
        url = topology.of(Role.GATEWAY)[0].url
        body = json.dumps({"model": "mine", "prompt": "def", "max_tokens": 3}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", body), timeout=60) as answer:
            assert json.load(answer)["model"] == "mine"
        with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
            assert [model["id"] for model in json.load(answer)["data"]] == ["mine"]
        for role in (Role.PREFILL, Role.DECODE):
            with urllib.request.urlopen(f"{topology.of(role)[0].url}/identity", timeout=60) as answer:
                assert json.load(answer)["role"] == role
        assert_nothing_stays_behind(process, tmp_path, [signal.SIGINT], 0)


def assert_nothing_stays_behind(
    process: subprocess.Popen[str], folder: Path, signals: list[signal.Signals], code: int | None
) -> None:
    pids = children(process.pid)
    assert len(pids) == 3
    for number in signals:
        os.kill(process.pid, number)
    ended = process.wait(PATIENCE)
    assert code is None or ended == code
    wait_until(lambda: not any(map(running, pids)), f"{pids} are still running")
    for instance in read_topology(folder / "topology.yaml").instances:
        assert not listening(instance.host, instance.port)


@pytest.mark.full
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM], 0),
        ([signal.SIGINT, signal.SIGINT], None),
        ([signal.SIGKILL], -signal.SIGKILL),
    ],
    ids=["SIGTERM", "Ctrl-C twice", "SIGKILL"],
)
def test_however_it_ends_nothing_stays_behind(
    signals: list[signal.Signals], code: int | None, tiny_model: Path, tmp_path: Path
) -> None:
    with serving(tiny_model, tmp_path) as process:
        assert_nothing_stays_behind(process, tmp_path, signals, code)


def test_a_dead_instance_is_named_and_ends_the_service(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tandem", "serve", str(tiny_model), "--port", "0", "--run-dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("ready:"):
        assert process.poll() is None
    pids = children(process.pid)
    os.kill(pids[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert re.search(r"decode-0 was killed by SIGKILL.*decode-0\.log", errors)
    assert not any(map(running, pids))


@pytest.mark.parametrize("spoil", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_half_written_folder_gives_one_line_and_starts_nothing(spoil: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    for file in tiny_model.iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.name == spoil else content)
    command = [sys.executable, "-m", "tandem", "serve", str(folder), "--port", "0", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert f"{spoil}: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_two_instances_cannot_share_a_port(tiny_model: Path) -> None:
    """Both bind it while the model loads; the second to listen must say so and end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tandem", "instance", str(tiny_model), "--port", str(port)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        wait_until(lambda: any(one.poll() is not None for one in both), "both instances run on one port")
        (loser,) = (one for one in both if one.poll() is not None)
        assert loser.returncode == 2
        assert f"--port {port} on 127.0.0.1" in loser.communicate()[1]
    finally:
        for one in both:
            one.terminate()
            one.communicate()
