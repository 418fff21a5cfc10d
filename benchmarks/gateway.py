"""What the gateway costs beside vllm-router, in front of the same workers, in the same run.

Prefill and decode workers that answer at once and compute nothing, shared out over four processes. They speak vLLM's
pull protocol; the gateway asks them for token ids and cuts those out again, as it does with real ones. Routers take
turns, because other work runs on the machine. CPU is user plus system time of the router's process and its children,
per streamed request, 16 requests at a time, the median over the rounds. What is added to the time to the first token is
the median of one request at a time through the router, less that of the same request sent to a decode worker directly;
and so the 99th percentile, which says more about the machine than about routers where others work on it.

    pip install vllm-router
    python benchmarks/gateway.py                            # both routers; without vllm-router, the gateway alone
    python benchmarks/gateway.py --instances 2 16 64 256    # whether the cost grows with the number of workers
    python benchmarks/gateway.py --workers 1 2              # our gateway in one process, and in two
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
import psutil
import uvloop

from tandem.deploy.port import free_ports

HOST = "127.0.0.1"
LENGTHS = (16, 128)
CONCURRENCY = 16
SLICES = 5
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TICKET = {
    "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2, 3]], "remote_engine_id": "e",
    "remote_request_id": "r", "remote_host": HOST, "remote_port": 5600, "tp_size": 1,
}  # fmt: skip
ROUTER = shutil.which("vllm-router", path=str(Path(sys.executable).parent)) or shutil.which("vllm-router")


def chunk(position: int, *, ids: bool, last: bool) -> bytes:
    """One event of a completion, as vLLM writes it."""
    choice: dict[str, Any] = {
        "index": 0,
        "text": " token",
        "logprobs": None,
        "finish_reason": "length" if last else None,
    }
    if ids:
        choice |= {"prompt_token_ids": list(range(200)) if position == 0 else None, "token_ids": [position]}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    return b"data: " + json.dumps(head | {"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


STREAMS = {
    (length, ids): b"".join(chunk(i, ids=ids, last=i == length - 1) for i in range(length)) + b"data: [DONE]\n\n"
    for length in LENGTHS
    for ids in (False, True)
}
PREFILLED = json.dumps(
    {"id": "cmpl-1", "choices": [{"index": 0, "text": "", "finish_reason": "length"}], "kv_transfer_params": TICKET}
).encode()


class Worker(asyncio.Protocol):
    """One connection to a worker: a ticket for a prefill, else the whole stream at once.

    Written on the bare socket, because a web framework takes longer for the prefill than a router does for everything
    it adds, and that would be counted as the router's.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A router, or a client of the direct way, is there."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self.received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Answer what is whole; the rest waits for the rest of its body."""
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self.received, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.received) < whole:
                return
            request = bytes(self.received[end + 4 : whole])
            del self.received[:whole]
            self.transport.write(answer(request))


def answer(request: bytes) -> bytes:
    """The response to a request's body; one without a body asks after the health."""
    body = json.loads(request) if request else {}
    if not body or (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
        answered = PREFILLED if body else b"{}"
        return HEAD % (b"application/json", b"Content-Length: %d" % len(answered)) + answered
    # The gateway has one token written to use up a ticket that nobody wants any more.
    stream = STREAMS.get((body["max_tokens"], bool(body.get("return_token_ids"))), b"data: [DONE]\n\n")
    head = HEAD % (b"text/event-stream; charset=utf-8", b"Transfer-Encoding: chunked")
    return b"%s%x\r\n%s\r\n0\r\n\r\n" % (head, len(stream), stream)


async def serve_workers(ports: list[int]) -> None:
    """Workers on these ports, for ever; several in one process where there are many."""
    for port in ports:
        await asyncio.get_running_loop().create_server(Worker, HOST, port)
    await asyncio.Event().wait()


@contextmanager
def workers(ports: list[int], processes: int) -> Iterator[None]:
    """Workers on all ports, shared out over so many processes."""
    shares = [ports[i::processes] for i in range(processes)]
    command = [sys.executable, __file__, "--serve"]
    started = [subprocess.Popen([*command, *map(str, share)]) for share in shares]
    try:
        for port in ports:
            wait_for(f"http://{HOST}:{port}/health")
        yield
    finally:
        for process in started:
            process.terminate()
            process.wait()


def router_command(name: str, prefill: list[str], decode: list[str], port: int) -> list[str]:
    """How a router is started in front of workers; `tandem-2` is our gateway in two processes."""
    roles = [
        word for role, urls in (("--prefill", prefill), ("--decode", decode)) for url in urls for word in (role, url)
    ]
    if name.startswith("tandem"):
        count = name.partition("-")[2] or "1"
        return [sys.executable, "-m", "tandem", "gateway", *roles, "--port", str(port), "--workers", count]
    assert ROUTER is not None
    metrics = free_ports(HOST, 1)[0]
    return [
        *(ROUTER, "--policy", "round_robin", "--vllm-pd-disaggregation", "--host", HOST, "--port", str(port)),
        *("--prometheus-port", str(metrics), "--worker-startup-check-interval", "1", "--log-level", "error"),
        *roles,
    ]


@contextmanager
def router(name: str, prefill: list[str], decode: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A running router: its URL and its process."""
    port = free_ports(HOST, 1)[0]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(router_command(name, prefill, decode, port), stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://{HOST}:{port}/health")
            asyncio.run(load(f"http://{HOST}:{port}", 16, 1, 1))
            yield f"http://{HOST}:{port}", psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def wait_for(url: str) -> None:
    """Wait until something answers with 200."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url} does not answer") from None
            time.sleep(0.1)


def body_of(length: int) -> dict[str, Any]:
    return {"model": "m", "prompt": "word " * 200, "max_tokens": length, "stream": True, "temperature": 0}


async def load(url: str, length: int, requests: int, at_once: int) -> list[float]:
    """Seconds to the first bytes of each of so many requests."""
    left, firsts = iter(range(requests)), list[float]()
    wanted = len(STREAMS[length, False])

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            began = time.perf_counter()
            async with session.post(f"{url}/v1/completions", json=body_of(length)) as response:
                first = await response.content.readany()
                firsts.append(time.perf_counter() - began)
                whole = first + await response.read()
                assert whole.count(b"data: {") == length, whole[:300]
                assert whole.endswith(b"data: [DONE]\n\n"), whole[-300:]
                assert abs(len(whole) - wanted) < 64 * length, len(whole)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(at_once)))
    return firsts


def cpu_seconds(process: psutil.Process) -> float:
    """User plus system time of a process and its children."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times)


@dataclass
class Found:
    """What the rounds of one router found, for one length of answer."""

    cpu_ms: list[float] = field(default_factory=list)
    """Per request, of each round."""
    through: list[float] = field(default_factory=list)
    """Seconds to the first bytes of each request through the router, one at a time."""
    direct: list[float] = field(default_factory=list)
    """The same without a router."""

    def measure(self, url: str, process: psutil.Process, direct: str, length: int, requests: int) -> None:
        """One more round."""
        before = cpu_seconds(process)
        uvloop.run(load(url, length, requests, CONCURRENCY))
        self.cpu_ms.append(1000 * (cpu_seconds(process) - before) / requests)
        # In turns, so that both have the same neighbours.
        for _ in range(SLICES):
            self.through += uvloop.run(load(url, length, requests // 8 // SLICES, 1))
            self.direct += uvloop.run(load(direct, length, requests // 8 // SLICES, 1))

    def summary(self) -> dict[str, float]:
        """Medians, and what is added to the time to the first token at the middle and at the slow end."""
        added = {percent: 1000 * (at(percent, self.through) - at(percent, self.direct)) for percent in (50, 99)}
        return {"cpu_ms": statistics.median(self.cpu_ms), "ttft_p50_ms": added[50], "ttft_p99_ms": added[99]}


def at(percent: int, values: list[float]) -> float:
    """A percentile."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def compare(instances: int, rounds: int, requests: int, ours: list[str]) -> Iterator[dict[str, Any]]:
    """Each router in front of so many workers of each role."""
    ports = free_ports(HOST, 2 * instances)
    urls = [f"http://{HOST}:{port}" for port in ports]
    names = [*ours, *(["vllm-router"] if ROUTER else [])]
    found = {(name, length): Found() for length in LENGTHS for name in names}
    with ExitStack() as stack:
        stack.enter_context(workers(ports, min(4, len(ports))))
        running = {name: stack.enter_context(router(name, urls[:instances], urls[instances:])) for name in names}
        for _ in range(rounds):
            for (name, length), one in found.items():
                one.measure(*running[name], urls[-1], length, requests)
    for (name, length), one in found.items():
        yield {"instances": instances, "router": name, "tokens": length} | one.summary()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--instances", type=int, nargs="+", default=[2], help="of each role; one or several")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="processes of our gateway; one or several")
    parser.add_argument("--json", action="store_true", help="a line for each row, in place of the table")
    parser.add_argument("--serve", type=int, nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        uvloop.run(serve_workers(given.serve))
    if not given.json:
        print("| instances of each role | router | tokens | CPU ms per request | first token, added ms: p50 | p99 |")
        print("|---|---|---|---|---|---|")
    ours = ["tandem" if count == 1 else f"tandem-{count}" for count in given.workers]
    for instances in given.instances:
        for row in compare(instances, given.rounds, given.requests, ours):
            if given.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"| {row['instances']} | {row['router']} | {row['tokens']} | {row['cpu_ms']:.2f} | "
                f"{row['ttft_p50_ms']:+.2f} | {row['ttft_p99_ms']:+.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
