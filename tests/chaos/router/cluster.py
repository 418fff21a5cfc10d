"""The mock instances of one row."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from chaos.router.mock.wish import Dialect
from chaos.router.process import Process
from chaos.router.real.engine import EngineName

Role = Literal["prefill", "decode"]

LOOK = aiohttp.ClientTimeout(total=10.0)
"""Generous: the kit, the router and all instances may share two busy processors."""
KNOCK = aiohttp.ClientTimeout(total=2.0)
START_S = 60.0
"""On a busy machine."""
REAL_START_S = 400.0
"""Four servers of vLLM's on two processors."""


class NotStartedError(Exception):
    """A process does not serve."""


class Ports:
    """Free ports of a range, each given once."""

    def __init__(self, among: Sequence[int]) -> None:
        self._left = random.SystemRandom().sample(among, len(among))

    def take(self) -> int:
        """One that nobody listens on."""
        while self._left:
            port = self._left.pop()
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sock.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise NotStartedError("no port of the range is free; give another one with --ports")


@dataclass(frozen=True)
class Real:
    """Which real instances, and their model."""

    engine: EngineName
    model: Path

    @property
    def options(self) -> list[str]:
        """Of a front's command."""
        return ["--engine", self.engine, "--model", str(self.model)]


@dataclass(eq=False)
class Mock:
    """One mock instance, or a front that is struck like one."""

    role: Role
    port: int
    process: Process
    http: aiohttp.ClientSession
    start_s: float = START_S

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def tell(self, path: str, payload: Any = None) -> Any:
        """Change something on it."""
        said = {"data": json.dumps(payload), "headers": {"Content-Type": "application/json"}}
        async with self.http.post(self.url + path, **said, timeout=LOOK) as response:
            response.raise_for_status()
            return await response.json()

    async def state(self) -> dict[str, Any]:
        """What it holds and what was done wrongly."""
        async with self.http.get(f"{self.url}/mock/state", timeout=LOOK) as response:
            return await response.json()

    async def serving(self) -> None:
        """Wait until it answers.

        Raises:
            NotStartedError: It does not.
        """
        await answering(self.http, self.url + "/health", self.process, self.start_s)


async def answering(http: aiohttp.ClientSession, url: str, process: Process, seconds: float = START_S) -> None:
    """Wait until a process answers with anything but 503.

    Raises:
        NotStartedError: It ended, or does not answer in time.
    """
    limit = time.monotonic() + seconds
    while process.ended is None and time.monotonic() < limit:
        try:
            async with http.get(url, timeout=KNOCK) as response:
                if response.status != 503:
                    return
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        await asyncio.sleep(0.05)
    raise NotStartedError(f"{process.name} does not serve: {process.log.read_text(errors='replace')[-2000:]}")


class Cluster:
    """Prefill and decode instances; use as an asynchronous context.

    Args:
        dialect: What they speak.
        lease_s: How long a ticket waits to be pulled.
        ports: To listen on.
        logs: Where their output goes.
        http: To ask them with.
        settings: Of all of them.
        real: The real instances to start in place of mocks.
    """

    def __init__(
        self,
        dialect: Dialect,
        lease_s: float,
        ports: Ports,
        logs: Path,
        http: aiohttp.ClientSession,
        settings: Any,
        real: Real | None = None,
    ) -> None:
        self._dialect, self._lease_s, self._ports = dialect, lease_s, ports
        self._logs, self._http, self._settings, self._real = logs, http, settings, real
        self.prefill = [self._mock("prefill", number) for number in range(2)]
        self.decode = [self._mock("decode", number) for number in range(2)]
        self.engine_ids: set[str] = set()
        self.misuse: list[str] = []
        """What was done to processes that are gone."""

    def _mock(self, role: Role, number: int) -> Mock:
        port = self._ports.take()
        given = ["--role", role, "--port", str(port), "--lease", str(self._lease_s)]
        if self._real is None:
            command = [sys.executable, "-m", "chaos.router.mock.server", *given, "--dialect", self._dialect]
        else:
            command = [sys.executable, "-m", "chaos.router.real.front", *given, *self._real.options]
            command += ["--engine-port", str(self._ports.take()), "--kv-port", str(self._ports.take())]
        start_s = START_S if self._real is None else REAL_START_S
        return Mock(role, port, Process(f"{role}-{number}", command, self._logs), self._http, start_s)

    async def __aenter__(self) -> Cluster:
        try:
            await asyncio.gather(*map(self.start, self.mocks))
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for mock in self.mocks:
            mock.process.kill()

    async def start(self, mock: Mock) -> None:
        """Start one, for the first time or again on its port."""
        mock.process.start()
        await mock.serving()
        await mock.tell("/mock/settings", self._settings)
        state = await mock.state()
        self.engine_ids |= {state["engine_id"], *state.get("secrets", ())}

    async def mend(self, settings: Any) -> None:
        """Get everything ready for the next row: the dead and the frozen are started again, the others unharmed."""
        self._settings = settings
        self.misuse.clear()
        await asyncio.gather(*map(self._mend, self.mocks))

    async def _mend(self, mock: Mock) -> None:
        if not mock.process.alive:
            mock.process.kill()
            await self.start(mock)
        await mock.tell("/mock/fault")
        await mock.tell("/mock/settings")
        await mock.tell("/mock/settings", self._settings)

    async def restart(self, mock: Mock) -> None:
        """Stop one in order, and start it again."""
        self.misuse += (await mock.state())["misuse"]
        await mock.process.stop()
        await self.start(mock)

    def of(self, role: Role) -> list[Mock]:
        return self.prefill if role == "prefill" else self.decode

    @property
    def mocks(self) -> list[Mock]:
        return [*self.prefill, *self.decode]

    @property
    def secrets(self) -> Iterator[str]:
        """Texts that no client may see."""
        yield from self.engine_ids
        yield from (f"127.0.0.1:{mock.port}" for mock in self.mocks)

    async def states(self) -> dict[str, dict[str, Any]]:
        """Of everything that lives."""
        alive = [mock for mock in self.mocks if mock.process.alive]
        told = await asyncio.gather(*(mock.state() for mock in alive))
        return {mock.process.name: state for mock, state in zip(alive, told, strict=True)}

    @property
    def lost(self) -> list[str]:
        """Processes that ended although nobody wanted it: a mistake of the kit's."""
        gone = [mock.process for mock in self.mocks if mock.process.ended is not None and not mock.process.condemned]
        return [f"{one.name} ended by itself: {one.log.read_text(errors='replace')[-800:]}" for one in gone]
