"""Asks the router and keeps every byte that comes, with the way it ended."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from chaos.router.load import Ask

End = Literal["whole", "broken", "late"]


@dataclass
class Exchange:
    """One request and what came back."""

    status: int | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    end: End = "late"
    error: str = ""
    """What broke it."""
    seconds: float = 0.0


async def exchange(http: aiohttp.ClientSession, url: str, ask: Ask, limit_s: float) -> Exchange:
    """Ask, and leave when the limit is over."""
    got, begun = Exchange(), time.monotonic()
    try:
        async with asyncio.timeout(limit_s):
            await _fill(got, http, url, ask)
        got.end = "whole"
    except TimeoutError:
        got.error = f"no end within {limit_s:g} s"
    except (aiohttp.ClientError, OSError) as error:
        got.end, got.error = "broken", type(error).__name__
    got.seconds = time.monotonic() - begun
    return got


async def _fill(got: Exchange, http: aiohttp.ClientSession, url: str, ask: Ask) -> None:
    async with http.post(url + ask.path, json=ask.body) as response:
        got.status = response.status
        got.headers = list(response.headers.items())
        async for piece in response.content.iter_any():
            got.body += piece


def session() -> aiohttp.ClientSession:
    """Clients that share nothing: every request has a connection of its own, and no limit but its own."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
