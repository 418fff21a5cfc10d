"""The documents' example as they write it: tables, then one start command in three processes, the scheduler first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from tandem.cli import run
from tandem.deploy.port import free_ports, port_is_free

HOST = "127.0.0.1"
PATIENCE = 90.0
GEN = ["--mode", "gen", "--prefill-server-list", "4,5", "--decode-server-list", "6,7", "--api-server"]
TOOLS = Path("llm_tools", "PD_separate")
WITH_TANDEM = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, made for as many tokens as the documents ask for."""
    folder = tmp_path_factory.mktemp("long") / "tiny"
    shutil.copytree(tiny_model, folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}))
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the documents' own tool, whose scripts lie beside them."""
    folder = tmp_path_factory.mktemp("tables")
    assert run(["compat", "scripts", str(folder)]) == 0
    command = [sys.executable, folder / TOOLS / "pd_ranktable_tools.py", *GEN, "--local-ip", HOST, "--save-dir", folder]
    subprocess.run(command, check=True, env=WITH_TANDEM)
    return folder


def documented_ports() -> list[int]:
    """8088, 8089 and 9000, each unless something on this machine has it."""
    free = free_ports(HOST, 3)
    return [
        port if port_is_free("0.0.0.0", port) else other for port, other in zip((8088, 8089, 9000), free, strict=True)
    ]


@dataclass
class Starts:
    """Starts roles as the documents do."""

    model: Path
    tables: Path
    folder: Path
    ports: list[int]
    stack: ExitStack

    def start(self, suffix: str, port: int, **variables: str) -> subprocess.Popen[bytes]:
        environment = {
            "GLOBAL_RANK_TABLE_FILE_PATH": str(self.tables / f"global_ranktable_{HOST}.json"),
            "RANK_TABLE_FILE_PATH": str(self.tables / f"local_ranktable_{HOST}_{suffix}.json"),
            "NODE_PORTS": f"{self.ports[0]},{self.ports[1]}",
            "USE_OPENAI": "1",
        }
        command = [
            "sh", str(self.tables / TOOLS / "start_servers.sh"),
            f"--model={self.model}",
            "--tensor-parallel-size=2",
            "--max-model-len=4096",
            "--max-num-seqs=256",
            "--max-num-batched-tokens=4096",
            "--host=0.0.0.0",
            f"--port={port}",
            "--served-model-name", "documented",
            "--device", "cpu",
        ]  # fmt: skip
        with (self.folder / f"{suffix}-{port}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**WITH_TANDEM, **environment, **variables}
            )
        self.stack.callback(stopped, process)
        return process

    def log(self, suffix: str, port: int) -> str:
        return (self.folder / f"{suffix}-{port}.log").read_text()


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def starting(model: Path, tables: Path, folder: Path) -> Iterator[Starts]:
    with ExitStack() as stack:
        yield Starts(model, tables, folder, documented_ports(), stack)


def ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    """Status and body; status 0 while nobody listens."""
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except urllib.error.URLError:
        return 0, b""


def wait_until(holds: Callable[[], bool], starts: Starts) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        logs = "\n".join(f"{path.name}:\n{path.read_text()}" for path in starts.folder.glob("*.log"))
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)


@pytest.mark.full
def test_the_documented_example(model: Path, tables: Path, tmp_path: Path) -> None:
    with starting(model, tables, tmp_path) as starts:
        prefill, decode, port = starts.ports
        url, native = f"http://{HOST}:{port}", free_ports(HOST, 1)[0]
        starts.start("host", port)
        wait_until(lambda: ask(f"{url}/health")[0] == 503, starts)
        assert json.loads(ask(f"{url}/health")[1])["status"] == "starting"
        status, refusal = ask(f"{url}/v1/completions", {"prompt": "def"})
        assert status == 503
        assert "waits for prefill-0, decode-0" in json.loads(refusal)["error"]["message"]
        waiting = f"waiting for prefill-0 at http://{HOST}:{prefill}, decode-0 at http://{HOST}:{decode}"
        wait_until(lambda: waiting in starts.log("host", port), starts)

        starts.start("45", prefill)
        starts.start("67", decode)
        starts.start("host", native, USE_OPENAI="0")
        for one in (url, f"http://{HOST}:{native}"):
            wait_until(lambda one=one: ask(f"{one}/health")[0] == 200, starts)
        assert "prefill-0 hands over to decode-0" in starts.log("host", port)
        assert "--host 0.0.0.0: the HTTP and KV ports of prefill-0 are open" in starts.log("45", prefill)
        assert "0.0.0.0: the HTTP" not in starts.log("host", port)

        who = [json.loads(ask(f"http://{HOST}:{one}/identity")[1]) for one in (prefill, decode)]
        assert [(one["role"], one["seat"]["devices"]) for one in who] == [("prefill", [4, 5]), ("decode", [6, 7])]
        assert who[0]["seat"]["table"] == who[1]["seat"]["table"]
        assert f"global rank table {who[0]['seat']['table']}" in starts.log("host", port)

        body = {"model": "documented", "prompt": "def main(", "max_tokens": 8, "temperature": 0, "stream": True}
        status, stream = ask(f"{url}/v1/completions", body)
        assert (status, stream.endswith(b"data: [DONE]\n\n")) == (200, True)
        events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
        text = "".join(choice["text"] for event in events for choice in event["choices"])
        assert text
        assert ask(f"{url}/v1/completions", body | {"model": "other"})[0] == 404
        status, refusal = ask(f"{url}/v1/completions", body | {"prompt": "é" * 5000})
        assert (status, json.loads(refusal)["error"]["code"]) == (400, "context_length_exceeded")

        native_speaks(f"http://{HOST}:{native}", "def main(" + text)
        a_client_that_leaves_native(f"http://{HOST}:{native}", [prefill, decode])
        wait_until(lambda: "/generate" in starts.log("host", native) and " 499" in starts.log("host", native), starts)
        wrong_starts(starts, who[0]["seat"]["table"])


def native_speaks(url: str, whole: str) -> None:
    """vLLM 0.5.0's own API, whole and streamed, and nothing else."""
    body = {"prompt": "def main(", "max_tokens": 8, "temperature": 0}
    assert json.loads(ask(f"{url}/generate", body)[1]) == {"text": [whole]}
    *objects, rest = ask(f"{url}/generate", body | {"stream": True})[1].split(b"\0")
    texts = [json.loads(one)["text"][0] for one in objects]
    assert (rest, texts[-1], len(texts) >= 8) == (b"", whole, True)
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert len(json.loads(ask(f"{url}/generate", body | {"n": 3, "temperature": 1})[1])["text"]) == 3
    status, refusal = ask(f"{url}/generate", body | {"use_beam_search": True})
    assert (status, json.loads(refusal)["error"]["param"]) == (400, "use_beam_search")
    status, refusal = ask(f"{url}/v1/completions", body)
    assert (status, "/generate" in json.loads(refusal)["error"]["message"]) == (404, True)


def a_client_that_leaves_native(url: str, ports: list[int]) -> None:
    """Hang up in the middle of a stream; on both instances nothing of it is left."""

    async def leave() -> None:
        body = {"prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
        async with aiohttp.ClientSession() as session, session.post(f"{url}/generate", json=body) as answer:
            await answer.content.readany()

    uvloop.run(leave())
    deadline = time.monotonic() + 10
    for port in ports:
        while b"\ntandem_requests_running 0.0\n" not in ask(f"http://{HOST}:{port}/metrics")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def wrong_starts(starts: Starts, digest: str) -> None:
    """Schedulers that find somebody else than the table says, end and name the position."""
    prefill, decode = starts.ports[:2]
    port = free_ports(HOST, 1)[0]
    assert starts.start("host", port, NODE_PORTS=f"{decode},{prefill}").wait(PATIENCE) == 2
    assert (
        f"NODE_PORTS position 1, http://{HOST}:{decode}: decode on devices 6,7 of {HOST} answers there instead of "
        f"prefill on devices 4,5 of {HOST}; put the ports in the order of the global rank table: prefill, then decode; "
        f"NODE_PORTS position 2, http://{HOST}:{prefill}: prefill on devices 4,5 of {HOST} answers there"
    ) in starts.log("host", port)

    path = starts.folder / "other.json"
    table = json.loads((starts.tables / f"global_ranktable_{HOST}.json").read_text())
    path.write_text(json.dumps(table | {"note": "changed since"}))
    assert starts.start("host", port, GLOBAL_RANK_TABLE_FILE_PATH=str(path)).wait(PATIENCE) == 2
    assert f"was started with the global rank table {digest}, here it is" in starts.log("host", port)
