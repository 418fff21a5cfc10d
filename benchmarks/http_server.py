"""Which HTTP library relays a stream more cheaply: the measurement behind the gateway's choice.

One streaming proxy, written minimally twice: aiohttp's server on uvloop, and Starlette under uvicorn with uvloop and
httptools; both call the same upstream with aiohttp's client. A and B take turns, because other work runs on the
machine; the numbers are medians over the rounds. CPU is user plus system time of the proxy's process alone, over
answers whose chunks come PACE_MS apart, as tokens do: chunks sent in one burst are merged on the way, and then their
number costs nothing. The rate is measured over bursts.

    pip install starlette "uvicorn[standard]"
    python benchmarks/http_server.py
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

CHUNK = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"tok"}]}\n\n'
)
BODY = json.dumps({"model": "m", "prompt": "word " * 200, "stream": True}).encode()
PROXIES = ("aiohttp", "starlette")
LENGTHS = (16, 128)
CONCURRENCY = 16
PACE_MS = 4
EVENT_STREAM = {"Content-Type": "text/event-stream"}


async def upstream(request: web.Request) -> web.StreamResponse:
    """Answers with as many chunks as the path says, so many milliseconds apart."""
    await request.read()
    response = web.StreamResponse(headers=EVENT_STREAM)
    await response.prepare(request)
    for _ in range(int(request.match_info["count"])):
        await response.write(CHUNK)
        await asyncio.sleep(int(request.match_info["pace"]) / 1000)
    return response


async def serve_aiohttp_app(app: web.Application, port: int) -> None:
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def serve_upstream(port: int, _: str) -> None:
    app = web.Application()
    app.router.add_post("/{count}/{pace}", upstream)
    await serve_aiohttp_app(app, port)


async def serve_aiohttp(port: int, target: str) -> None:
    """The proxy on aiohttp's server."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def relay(request: web.Request) -> web.StreamResponse:
        async with session.post(target + request.path, data=await request.read()) as answer:
            response = web.StreamResponse(headers=EVENT_STREAM)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            return response

    app = web.Application()
    app.router.add_post("/{count}/{pace}", relay)
    await serve_aiohttp_app(app, port)


async def serve_starlette(port: int, target: str) -> None:
    """The same proxy on Starlette and uvicorn."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def relay(request: Request) -> StreamingResponse:
        answer = await session.post(target + request.url.path, data=await request.body())

        async def pieces() -> AsyncIterator[bytes]:
            async with answer:
                async for piece in answer.content.iter_any():
                    yield piece

        return StreamingResponse(pieces(), headers=EVENT_STREAM)

    app = Starlette(routes=[Route("/{count}/{pace}", relay, methods=["POST"])])
    options: dict[str, Any] = {"loop": "none", "http": "httptools", "log_level": "warning", "access_log": False}
    await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **options)).serve()


SERVERS = {"upstream": serve_upstream, "aiohttp": serve_aiohttp, "starlette": serve_starlette}


def start(kind: str, target: str = "") -> tuple[subprocess.Popen[bytes], str]:
    """A server of one kind in a process of its own, once it listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, "--serve", kind, "--port", str(port), "--target", target])
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return process, f"http://127.0.0.1:{port}"
    process.terminate()
    raise SystemExit(f"{kind} did not start on port {port}")


def cpu_seconds(pid: int) -> float:
    """User plus system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(url: str, length: int, pace: int, requests: int) -> float:
    """Send `requests` at CONCURRENCY; the seconds it took."""
    left = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(f"{url}/{length}/{pace}", data=BODY) as response:
                assert len(await response.read()) == length * len(CHUNK)

    async with aiohttp.ClientSession() as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(CONCURRENCY)))
        return time.perf_counter() - began


def measure(pid: int, url: str, length: int, requests: int) -> tuple[float, float]:
    """CPU milliseconds per paced request, and requests per second of bursts."""
    before = cpu_seconds(pid)
    paced = requests // 2
    uvloop.run(load(url, length, PACE_MS, paced))
    cpu = cpu_seconds(pid) - before
    return cpu * 1000 / paced, requests / uvloop.run(load(url, length, 0, requests))


def compare(rounds: int, requests: int) -> None:
    """Start everything, let A and B take turns, print the table."""
    upstream_process, target = start("upstream")
    proxies = {kind: start(kind, target) for kind in PROXIES}
    found: dict[tuple[int, str], list[tuple[float, float]]] = {(n, kind): [] for n in LENGTHS for kind in PROXIES}
    try:
        for turn in range(rounds + 1):
            for length, kind in found:
                process, url = proxies[kind]
                result = measure(process.pid, url, length, requests if length < 100 else requests // 2)
                if turn:  # the first one warms up
                    found[length, kind].append(result)
    finally:
        for process in (upstream_process, *(process for process, _ in proxies.values())):
            process.terminate()
            process.wait()
    print(f"{'chunks':>6}  {'server':<10} {'CPU ms/request':>15} {'requests/s':>11}   (medians of {rounds} rounds)")
    for (length, kind), results in found.items():
        cpu, rate = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"{length:>6}  {kind:<10} {cpu:>15.2f} {rate:>11.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--requests", type=int, default=384, help="per round; half of it for long answers")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if missing := [name for name in ("starlette", "uvicorn", "httptools") if importlib.util.find_spec(name) is None]:
        sys.exit(f"{', '.join(missing)}: not installed; pip install starlette 'uvicorn[standard]' for this measurement")
    if options.serve:
        uvloop.run(SERVERS[options.serve](options.port, options.target))
    else:
        compare(options.rounds, options.requests)


if __name__ == "__main__":
    main()
