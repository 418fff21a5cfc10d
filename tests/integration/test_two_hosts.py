"""Two prefill and two decode instances on two hosts, which are two network namespaces: tables from each, merged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HOSTS = ("10.77.0.1", "10.77.0.2")
PATIENCE = 90.0
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode() if len(sys.argv) > 2 else None)
with urllib.request.urlopen(request, timeout=30) as answer:
    print(answer.headers["X-Tandem-Prefill"], answer.headers["X-Tandem-Decode"])
    print(answer.read().decode())
"""


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, ...]]:
    """Two namespaces, each with one of `HOSTS`, joined by a wire."""
    names = tuple(f"tandem{os.getpid()}{letter}" for letter in "ab")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need `ip`")
    try:
        if not all(ip("netns", "add", name) for name in names):
            pytest.skip("no right to make network namespaces")
        ends = [f"t{os.getpid() % 10**6}{letter}" for letter in "ab"]
        assert ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for name, end, address in zip(names, ends, HOSTS, strict=True):
            assert ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            assert all(ip("-n", name, "link", "set", device, "up") for device in ("lo", end))
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def on(host: str, *words: str) -> list[str]:
    """A command on one of the hosts."""
    return ["ip", "netns", "exec", host, sys.executable, *words]


def tandem(host: str, *words: str) -> None:
    subprocess.run(on(host, "-m", "tandem", *words), check=True, capture_output=True)


def ask(host: str, path: str, body: dict[str, Any] | None = None) -> list[str] | None:
    """Who prefilled and decoded, and the answer; None while there is none."""
    data = [] if body is None else [json.dumps(body)]
    done = subprocess.run(
        on(host, "-c", ASK, f"http://{HOSTS[0]}:9000{path}", *data), capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines() if done.returncode == 0 else None


@pytest.mark.full
def test_every_pair_of_two_hosts_serves(tiny_model: Path, tmp_path: Path, hosts: tuple[str, ...]) -> None:
    roles = ["--prefill-server-list", "0", "--decode-server-list", "1", "--save-dir", str(tmp_path)]
    tandem(hosts[0], "ranktable", "gen", *roles, "--local-ip", HOSTS[0], "--api-server")
    tandem(hosts[1], "ranktable", "gen", *roles, "--local-ip", HOSTS[1])
    files = [str(tmp_path / f"global_ranktable_{address}.json") for address in HOSTS]
    tandem(hosts[0], "ranktable", "merge", "--global-ranktable-list", *files, "--save-dir", str(tmp_path))
    starts = [(0, "host", 9000), (0, "0", 8088), (0, "1", 8089), (1, "0", 8088), (1, "1", 8089)]
    with ExitStack() as stack:
        for host, suffix, port in starts:
            environment = {
                "GLOBAL_RANK_TABLE_FILE_PATH": str(tmp_path / "global_ranktable_merge.json"),
                "RANK_TABLE_FILE_PATH": str(tmp_path / f"local_ranktable_{HOSTS[host]}_{suffix}.json"),
                "NODE_PORTS": "8088,8088,8089,8089",
            }
            words = on(
                hosts[host], "-m", "tandem", "serve", "--from-rank-table", f"--model={tiny_model}", f"--port={port}",
                "--served-model-name", "m", "--device=cpu",
            )  # fmt: skip
            with (tmp_path / f"{host}-{suffix}.log").open("wb") as log:
                process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **environment})
            stack.callback(process.wait)
            stack.callback(process.terminate)
        deadline = time.monotonic() + PATIENCE
        while ask(hosts[1], "/health") is None:
            logs = "\n".join(path.read_text() for path in tmp_path.glob("*.log"))
            assert time.monotonic() < deadline, logs
            time.sleep(0.2)
        log = (tmp_path / "0-host.log").read_text()
        for prefill, decode in ((0, 0), (0, 1), (1, 0), (1, 1)):
            assert f"prefill-{prefill} hands over to decode-{decode}" in log
        body = {"model": "m", "prompt": "def", "max_tokens": 5, "temperature": 0}
        answers = [ask(hosts[1], "/v1/completions", body) for _ in range(2)]
        assert [answer and answer[0] for answer in answers] == ["prefill-0 decode-0", "prefill-1 decode-1"]
        assert len({json.loads(answer[1])["choices"][0]["text"] for answer in answers if answer}) == 1
