"""One of the router's own processes is killed, where it has several: its streams break, and nothing else may."""

from __future__ import annotations

import time
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import psutil

from chaos.router.client import session
from chaos.router.cluster import Cluster
from chaos.router.strikes import Scars, StrikeError

CONNECT_S: Final = 1.0
"""A new connection must be served so soon, with a request that is no work."""
WATCH_S: Final = 4.0
"""So long after the strike connections are tried."""


async def kill_router_process(_: Cluster, scars: Scars) -> None:
    """SIGKILL to the one that has most connections of clients; then try new ones.

    Raises:
        StrikeError: The router has not two processes that serve.
    """
    assert scars.router is not None
    port = urlsplit(scars.url).port
    processes = psutil.Process(scars.router.pid).children(recursive=True)
    serving = {one: count for one in processes if (count := _connections(one, port))}
    if len(serving) < 2:
        raise StrikeError("the router has not two processes that serve; start it with several")
    victim = max(serving, key=serving.__getitem__)
    victim.suspend()  # so that none is taken between the count and the end
    scars.lost = _connections(victim, port)
    victim.kill()
    await _try_connections(scars)


def _connections(process: psutil.Process, port: int | None) -> int:
    """That clients have with it."""
    return sum(bool(one.raddr) and one.laddr.port == port for one in process.net_connections("tcp"))


async def _try_connections(scars: Scars) -> None:
    slowest, end = 0.0, time.monotonic() + WATCH_S
    async with session() as http:
        while (began := time.monotonic()) < end and slowest < CONNECT_S:
            try:
                async with http.get(f"{scars.url}/health", timeout=aiohttp.ClientTimeout(total=CONNECT_S)) as response:
                    await response.read()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                scars.faults.append(f"a new connection failed {began + WATCH_S - end:.1f} s after the kill: {error!r}")
                return
            slowest = max(slowest, time.monotonic() - began)
    if slowest >= CONNECT_S:
        scars.faults.append(f"a new connection was served after {slowest:.1f} s")
