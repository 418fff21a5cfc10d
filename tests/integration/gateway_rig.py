"""A gateway in front of fake workers, with a client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvloop
from fake_worker import FakeWorker, Script, running, whole_with_ticket, words

from tandem.gateway.config import GatewayConfig
from tandem.gateway.server import Gateway

BODY: dict[str, Any] = {"model": "m", "prompt": "hi", "max_tokens": 8}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"Content-Type": "application/json"}
EARLY = ("release", "early_ticket", "choices")
SOON_S = 3.0
"""How long anybody may take to notice that somebody else is gone."""


@dataclass
class Rig:
    """A gateway, its workers, and a client."""

    gateway: Gateway
    prefills: list[FakeWorker]
    decodes: list[FakeWorker]
    http: aiohttp.ClientSession = field(repr=False)

    @property
    def prefill(self) -> FakeWorker:
        return self.prefills[0]

    @property
    def decode(self) -> FakeWorker:
        return self.decodes[0]

    @property
    def url(self) -> str:
        return self.gateway.url

    def post(self, body: Any, path: str = "/v1/completions", **options: Any) -> Any:
        return self.http.post(self.url + path, json=body, **options)

    async def metric(self, series: str) -> float:
        """The sum of the lines of /metrics that have this name and at least these labels; 0 when there is none."""
        async with self.http.get(self.url + "/metrics") as response:
            page = await response.text()
        name, *labels = re.split(r"[{},]", series.rstrip("}"))
        lines = re.findall(rf"^{re.escape(name)}(?:{{(.*)}})? (\S+)$", page, re.MULTILINE)
        return sum(float(value) for found, value in lines if set(labels) <= set(found.split(",")))


@asynccontextmanager
async def rigged(
    prefill: Script | Sequence[Script] = whole_with_ticket,
    decode: Script | Sequence[Script] = words,
    capabilities: tuple[str, ...] = ("release",),
    **options: Any,
) -> AsyncIterator[Rig]:
    """A gateway in front of a worker for each script."""
    async with AsyncExitStack() as stack:
        prefills = [await stack.enter_async_context(running(script, capabilities)) for script in several(prefill)]
        decodes = [await stack.enter_async_context(running(script, capabilities)) for script in several(decode)]
        http = await stack.enter_async_context(aiohttp.ClientSession())
        urls = {"prefill": tuple(one.url for one in prefills), "decode": tuple(one.url for one in decodes)}
        gateway = Gateway(GatewayConfig(**urls, port=0, grace_s=0.1, **options))
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        yield Rig(gateway, prefills, decodes, http)


def several(script: Script | Sequence[Script]) -> Sequence[Script]:
    return (script,) if callable(script) else script


def trial(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A coroutine function as a test, on the event loop that the gateway runs on."""

    def test() -> None:
        uvloop.run(asyncio.wait_for(scenario(), 15))

    test.__name__ = scenario.__name__
    return test


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again; the trial's own time ends a wait that is in vain."""
    while True:
        if await holds():
            return
        await asyncio.sleep(0.01)
