"""The same starts with vLLM as the engine: keys and values go from one `vllm serve` to the other over NIXL."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_from_rank_table import ask, stopped
from tiny import TINY, write_model

from tandem.catalogue.config import GQA
from tandem.catalogue.position import Rope
from tandem.cli import run
from tandem.deploy.port import free_ports
from tandem.deploy.service import local_topology, running
from tandem.topology.file import read_topology, write_topology
from tandem.topology.topology import Role, Topology

pytestmark = [
    pytest.mark.skipif(shutil.which("vllm") is None, reason="vllm is not in PATH: docs/vllm.md says how to install it"),
    pytest.mark.timeout(900),
]

HOST = "127.0.0.1"
PATIENCE = 600.0
OWN_FLAGS = {"enforce-eager": "", "dtype": "float32", "max-model-len": "256", "max-num-seqs": "8"}
BODY: dict[str, Any] = {"prompt": "def main(argv):\n    return argv", "max_tokens": 12, "temperature": 0}


def text_of(stream: bytes) -> str:
    assert stream.endswith(b"data: [DONE]\n\n"), stream
    assert not any(hidden in stream for hidden in (b"kv_transfer_params", b"token_ids", b"tandem-seat"))
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    return "".join(choice["text"] for event in events for choice in event["choices"])


def fetched(url: str) -> float:
    """Bytes that an instance has pulled over NIXL, as vLLM counts them."""
    found = re.search(rb"^vllm:nixl_bytes_transferred_sum\{.*\} (\S+)$", ask(f"{url}/metrics")[1], re.MULTILINE)
    return 0.0 if found is None else float(found[1])


def serves_apart(service: str, prefill: str, decode: str) -> None:
    """The service gives the answer that one instance gives alone, and blocks have moved for it."""
    before, deadline = fetched(decode), time.monotonic() + 60
    status, whole = ask(f"{prefill}/v1/completions", BODY)
    assert status == 200, whole
    alone = json.loads(whole)["choices"][0]["text"]
    status, whole = ask(f"{service}/v1/completions", BODY)
    assert status == 200, whole
    assert json.loads(whole)["choices"][0]["text"] == alone
    assert "kv_transfer_params" not in json.loads(whole)
    # On two cores an instance may be deaf for seconds at its first request, which is then answered by the other alone.
    while fetched(decode) == before:
        assert time.monotonic() < deadline, "every request was answered by one instance alone"
        status, stream = ask(f"{service}/v1/completions", BODY | {"stream": True})
        assert (status, text_of(stream)) == (200, alone)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's attention on a CPU wants heads of 32 numbers and more."""
    sizes = {"hidden_size": 128, "attention": GQA(heads=4, kv_heads=2, head_dim=32)}
    config = replace(TINY, **sizes, position=Rope(theta=1e4, dims=32))
    return write_model(config, tmp_path_factory.mktemp("vllm"))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    words = ["--prefill-server-list", "4", "--decode-server-list", "6", "--api-server", "--local-ip", HOST]
    assert run(["ranktable", "gen", *words, "--save-dir", str(tmp_path)]) == 0
    return tmp_path


def test_from_rank_tables(model: Path, tables: Path) -> None:
    prefill, decode, public, first, second = free_ports(HOST, 5)
    variables = {
        "GLOBAL_RANK_TABLE_FILE_PATH": str(tables / f"global_ranktable_{HOST}.json"),
        "NODE_PORTS": f"{prefill},{decode}",
        "USE_OPENAI": "1",
    }
    command = [
        sys.executable, "-m", "tandem", "serve", "--from-rank-table", f"--model={model}", "--max-model-len=256",
        "--max-num-seqs=8", "--max-num-batched-tokens=256", "--served-model-name", "tiny", "--device", "cpu",
        "--dtype", "float32", "--engine", "vllm",
    ]  # fmt: skip
    starts = [("host", public, 0), ("4", prefill, first), ("6", decode, second)]
    with ExitStack() as stack:
        for suffix, port, kv_port in starts:
            local = {"RANK_TABLE_FILE_PATH": str(tables / f"local_ranktable_{HOST}_{suffix}.json")}
            words = [f"--port={port}", f"--kv-port={kv_port}", "--", "--enforce-eager"]
            log = stack.enter_context((tables / f"{suffix}.log").open("wb"))
            process = subprocess.Popen(
                [*command, *words], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **variables, **local}
            )
            stack.callback(stopped, process)
        deadline = time.monotonic() + PATIENCE
        while ask(f"http://{HOST}:{public}/health")[0] != 200:
            assert time.monotonic() < deadline, [path.read_text()[-3000:] for path in tables.glob("*.log")]
            time.sleep(0.5)
        assert "prefill-0 hands over to decode-0" in (tables / "host.log").read_text()
        urls = [f"http://{HOST}:{port}" for port in (public, prefill, decode)]
        serves_apart(*urls)
        assert [card["id"] for card in json.loads(ask(f"{urls[0]}/v1/models")[1])["data"]] == ["tiny"]


def written_topology(model: Path, folder: Path) -> Path:
    """Two vLLM instances and the gateway, in the file that a user would write."""
    made = local_topology(model, port=0, served_model_name="tiny", engine="vllm")
    instances = tuple(
        one if one.role is Role.GATEWAY else one.model_copy(update={"arguments": {**one.arguments, **OWN_FLAGS}})
        for one in made.instances
    )
    write_topology(Topology(**{**dict(made), "instances": instances}), folder / "topology.yaml")
    return folder / "topology.yaml"


@pytest.fixture
def topology(model: Path, tmp_path: Path) -> Iterator[Topology]:
    topology = read_topology(written_topology(model, tmp_path))
    with running(topology, tmp_path / "logs", timeout=PATIENCE):
        yield topology


def test_in_a_topology(topology: Topology) -> None:
    serves_apart(*(topology.of(role)[0].url for role in (Role.GATEWAY, Role.PREFILL, Role.DECODE)))


def test_a_killed_supervisor_leaves_nothing_however_far_the_start_is(model: Path, tmp_path: Path) -> None:
    path, logs = written_topology(model, tmp_path), tmp_path / "run" / "logs"
    command = [sys.executable, "-m", "tandem", "serve", str(path), "--run-dir", str(tmp_path / "run")]
    with (tmp_path / "log").open("wb") as log:
        supervisor = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + PATIENCE
    # Its engine is loading: in this phase vLLM does not heed a first SIGTERM.
    while not all("EngineCore" in log.read_text() for log in logs.glob("[pd]*.log")) or not list(logs.glob("d*.log")):
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    started = psutil.Process(supervisor.pid).children(recursive=True)
    assert len(started) > 4
    supervisor.kill()
    supervisor.wait()
    _, alive = psutil.wait_procs(started, timeout=15)
    assert not [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
