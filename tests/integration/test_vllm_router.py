"""vLLM's own router drives two of our instances through its pull protocol; the answers are one instance's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_apart import Service

from tandem.deploy.port import free_ports
from tandem.deploy.service import local_topology, running
from tandem.topology.topology import Role

ROUTER = shutil.which("vllm-router", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(ROUTER is None, reason="vllm-router is not installed; pip install vllm-router"),
]

COMPLETION = {"prompt": "def main(", "max_tokens": 12, "temperature": 0}
IDS = {"prompt": [7, 8, 9] * 20, "max_tokens": 12, "temperature": 0.9, "seed": 3}
CHAT = {"messages": [{"role": "user", "content": "What is textwrap?"}], "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def apart(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(
        local_topology(tiny_model, prefill=1, decode=1, port=0), tmp_path_factory.mktemp("apart"), timeout=120
    ) as deployment:
        yield Service(deployment.topology)


@pytest.fixture(scope="module")
def together(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(
        local_topology(tiny_model, prefill=0, decode=1, port=0), tmp_path_factory.mktemp("together"), timeout=120
    ) as deployment:
        yield Service(deployment.topology)


@pytest.fixture(scope="module")
def router(apart: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The router's URL."""
    assert ROUTER is not None
    port, metrics = free_ports("127.0.0.1", 2)
    command = [ROUTER, "--policy", "round_robin", "--vllm-pd-disaggregation", "--host", "127.0.0.1"]
    command += ["--prefill", apart.url(Role.PREFILL), "--decode", apart.url(Role.DECODE), "--port", str(port)]
    command += ["--prometheus-port", str(metrics), "--worker-startup-check-interval", "1"]
    log = tmp_path_factory.mktemp("router") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"NO_COLOR": "1"})
    try:
        wait_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)


def ask(url: str, path: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def events(stream: str) -> list[dict[str, Any]]:
    *parts, done, rest = stream.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", COMPLETION), ("/v1/completions", IDS), ("/v1/chat/completions", CHAT)],
    ids=["completion", "token ids", "chat"],
)
def test_vllm_router_drives_our_instances(
    router: str, apart: Service, together: Service, path: str, body: dict[str, Any]
) -> None:
    taken = apart.metric(Role.DECODE, "kv_transfers_received_total")
    body = body | {"model": apart.topology.served_model_name}
    got, expected = (json.loads(ask(url, path, body)) for url in (router, together.url(Role.BOTH)))
    assert (got["choices"], got["usage"]) == (expected["choices"], expected["usage"])
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    streams = [events(ask(url, path, body)) for url in (router, together.url(Role.BOTH))]
    told = [[(event["choices"], event.get("usage")) for event in stream] for stream in streams]
    assert told[0] == told[1]
    assert apart.metric(Role.DECODE, "kv_transfers_received_total") == taken + 2
    assert apart.metric(Role.DECODE, "prompt_tokens_computed_total") == 0
