"""What is done to the instances. The first instance of a role is the victim, or the one with the most work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from chaos.router.black_hole import BlackHole
from chaos.router.cluster import Cluster, Mock, Role
from chaos.router.mock.account import Phase
from chaos.router.process import Process

Strike = Callable[["Cluster", "Scars"], Awaitable[None]]

SOON_S = 15.0
"""Most seconds until a victim is as busy as a strike wants it."""

SETTLE_S = 2.5
"""A rolling restart goes on so long after an instance answers again: routers look at most of them once a second."""


class StrikeError(Exception):
    """A strike found nothing to strike: the row proves nothing."""


class Scars:
    """What a row leaves behind and must be cleared up, and what strikes at the router itself found."""

    def __init__(self) -> None:
        self.black_holes: list[BlackHole] = []
        self.router: Process | None = None
        self.url = ""
        """Of the router."""
        self.lost = 0
        """Connections of clients that had to break, with the process they were on."""
        self.faults: list[str] = []

    def clear(self) -> None:
        for hole in self.black_holes:
            hole.close()


def fault(role: Role, kind: str, **more: Any) -> Strike:
    """The victim fails requests for text from now on; see `mock.faults`."""

    async def strike(cluster: Cluster, _: Scars) -> None:
        await cluster.of(role)[0].tell("/mock/fault", {"kind": kind, **more})

    return strike


def settings(role: Role, **changed: Any) -> Strike:
    """All instances of a role work differently from now on."""

    async def strike(cluster: Cluster, _: Scars) -> None:
        await asyncio.gather(*(mock.tell("/mock/settings", changed) for mock in cluster.of(role)))

    return strike


def kill(role: Role) -> Strike:
    async def strike(cluster: Cluster, _: Scars) -> None:
        cluster.of(role)[0].process.kill()

    return strike


def kill_all(role: Role) -> Strike:
    async def strike(cluster: Cluster, _: Scars) -> None:
        for mock in cluster.of(role):
            mock.process.kill()

    return strike


def freeze(role: Role) -> Strike:
    async def strike(cluster: Cluster, _: Scars) -> None:
        cluster.of(role)[0].process.freeze()

    return strike


def black_hole(role: Role) -> Strike:
    """The victim's host is gone from the network: nothing answers at its address, not even a refusal."""

    async def strike(cluster: Cluster, scars: Scars) -> None:
        victim = cluster.of(role)[0]
        victim.process.kill()
        scars.black_holes.append(await asyncio.to_thread(BlackHole, victim.port))

    return strike


def half_open(role: Role) -> Strike:
    """All connections to the victim go dead without a word, those under way and those kept alive; new ones work."""

    async def strike(cluster: Cluster, _: Scars) -> None:
        await cluster.of(role)[0].tell("/mock/half_open")

    return strike


async def rolling_restart(cluster: Cluster, _: Scars) -> None:
    """Every instance, one after the other, each when the one before has served for a while."""
    for mock in cluster.mocks:
        await cluster.restart(mock)
        await asyncio.sleep(SETTLE_S)


def several(*strikes: Strike) -> Strike:
    """One after the other."""

    async def strike(cluster: Cluster, scars: Scars) -> None:
        for one in strikes:
            await one(cluster, scars)

    return strike


def once(role: Role, phase: Phase, strike: Strike, *, least: int = 1, tokens: int = 0) -> Strike:
    """Strike when the victim has so many requests in that phase, and has told so many more tokens since then.

    Raises:
        StrikeError: It never has.
    """

    async def waiting(cluster: Cluster, scars: Scars) -> None:
        victim = cluster.of(role)[0]
        busy = await _until(victim, lambda state: state["active"][phase] >= least)
        told = busy["tokens"] + tokens
        await _until(victim, lambda state: state["tokens"] >= told)
        await strike(cluster, scars)

    return waiting


async def _until(victim: Mock, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    limit = time.monotonic() + SOON_S
    while time.monotonic() < limit:
        if holds(state := await victim.state()):
            return state
        await asyncio.sleep(0.01)
    raise StrikeError(f"{victim.process.name} was never busy enough to be struck")
