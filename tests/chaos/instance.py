"""One `tandem instance` process on loopback, which can be killed, frozen and started again on its ports."""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
import psutil

from tandem.protocol.identity import Role
from tandem.protocol.lifeline import Lifeline

START = 90.0
"""Most seconds until a process serves, on a busy machine."""

LOOK = aiohttp.ClientTimeout(5)

METRIC = re.compile(r"^tandem_(\w+)(?:\{(\w+)=\"(\w+)\"\})? (\S+)$", re.MULTILINE)


LAST = 20.0
"""Most seconds until an instance ends that has lost a rank: a step under way may take the half of it."""


Strike = Literal["killed", "frozen"]


@dataclass
class Trouble:
    """Something that was done to an instance."""

    what: Strike
    until: float
    """When it was over; infinite while it lasts."""


class GoneError(Exception):
    """An instance ended although nobody killed it, or did not although it should."""


@dataclass(eq=False)
class Instance:
    """Name, ports and options stay; the process is a new one after every start."""

    name: str
    role: Role
    folder: Path
    logs: Path
    options: dict[str, Any]
    port: int = field(default_factory=lambda: free_port())
    kv_port: int = field(default_factory=lambda: free_port())
    incarnation: int = 0
    up: bool = False
    troubles: list[Trouble] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    condemned: bool = False
    """Somebody has killed it, or a part of it."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.logs / f"{self.name}.{self.incarnation}.log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        self.incarnation += 1
        self.condemned = False
        given = {"role": self.role, "port": self.port, "kv-port": self.kv_port, "device": "cpu", **self.options}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        self._lifeline = Lifeline()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tandem", "instance", str(self.folder), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._lifeline.environment | {"OMP_NUM_THREADS": "1"},
                pass_fds=[self._lifeline.descriptor],
            )
        self._lifeline.handed_over()

    async def serving(self, http: aiohttp.ClientSession) -> None:
        """Wait until it answers.

        Raises:
            GoneError: It ended instead.
        """
        limit = time.monotonic() + START
        while not self.up:
            if self.ended is not None:
                raise GoneError(f"{self.name} ended with {self.ended}:\n{self.log.read_text()[-2000:]}")
            assert time.monotonic() < limit, f"{self.name} does not serve"
            try:
                async with http.get(f"{self.url}/health", timeout=aiohttp.ClientTimeout(1)) as answer:
                    self.up = answer.status == 200
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(0.1)

    @property
    def ended(self) -> int | None:
        """The process's exit status, None while it runs."""
        return self.process.poll() if self.process is not None else None

    @property
    def ranks(self) -> list[psutil.Process]:
        """The other processes that share its model."""
        return psutil.Process(self.pid).children()

    def condemn(self) -> None:
        """It is about to be killed: nobody shall ask it any more."""
        self.up, self.condemned = False, True
        self.troubles.append(Trouble("killed", time.monotonic()))

    def kill(self) -> None:
        """SIGKILL; the kernel closes what it had open."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._lifeline.close()

    def kill_rank(self, rng: random.Random) -> None:
        """SIGKILL to one of the processes that share its model; it has to end by itself.

        Raises:
            GoneError: It does not; it was killed now.
        """
        assert self.process is not None
        rng.choice(self.ranks).kill()
        try:
            self.process.wait(LAST)
        except subprocess.TimeoutExpired:
            self.kill()
            raise GoneError(f"{self.name} went on without a rank:\n{self.log.read_text()[-3000:]}") from None
        self._lifeline.close()

    def freeze(self) -> None:
        self.troubles.append(Trouble("frozen", math.inf))
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        for trouble in self.troubles:
            trouble.until = min(trouble.until, time.monotonic())
        if self.ended is None:
            os.kill(self.pid, signal.SIGCONT)

    def done_to(self, since: float) -> set[Strike]:
        """What was done to it since then, or is being done."""
        return {trouble.what for trouble in self.troubles if trouble.until >= since}

    def ask_to_stop(self) -> None:
        self.up = False
        if self.ended is None:
            assert self.process is not None
            self.process.terminate()

    async def stopped(self, seconds: float = 20.0) -> int:
        """Its exit status, once asked to stop."""
        assert self.process is not None
        try:
            return await asyncio.to_thread(self.process.wait, seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return -1
        finally:
            self._lifeline.close()

    async def audit(self, http: aiohttp.ClientSession) -> dict[str, int]:
        async with http.get(f"{self.url}/tandem/audit", timeout=LOOK) as answer:
            return await answer.json()

    async def metrics(self, http: aiohttp.ClientSession) -> dict[str, float]:
        """By name; of those with a label, by name and value."""
        async with http.get(f"{self.url}/metrics", timeout=LOOK) as answer:
            text = await answer.text()
        return {name + (f".{value}" if value else ""): float(number) for name, _, value, number in METRIC.findall(text)}

    @property
    def descriptors(self) -> int:
        """How many the process has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


GIVEN: set[int] = set()
"""Ports of this process' instances, which may not listen yet."""


def free_port() -> int:
    """Below those the kernel gives away, so that it is still free when its process starts again."""
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        if port in GIVEN:
            continue
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            GIVEN.add(port)
            return port
