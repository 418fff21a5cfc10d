"""Plays one row: start, warm up, strike, load, judge, and see that nothing is held in the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from chaos.router.client import Exchange, exchange, session
from chaos.router.cluster import Cluster, NotStartedError, Ports, Real, answering
from chaos.router.command import TANDEM, command
from chaos.router.judge import Verdict, judge
from chaos.router.load import KINDS, Ask, ask, asks
from chaos.router.mock.wish import Dialect
from chaos.router.process import Process
from chaos.router.real.calm import Calm, compare
from chaos.router.rows import Row
from chaos.router.strikes import Scars, StrikeError
from chaos.router.told import WrongError

QUIET_S: Final = 5.0
"""So soon after a row nothing may be held on any instance that lives."""

TRIES: Final = 2
"""For processes to start: a port may be taken between the look and the start."""

WARM: Final = 8
"""Requests before a strike, so that every instance is known and connected to."""
WARM_S: Final = 30.0
"""Most seconds until the router serves so many at a time."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What stays the same from row to row."""

    router: str
    """Template of the router's command."""
    dialect: Dialect
    logs: Path
    ports: Ports
    seed: int = 7
    lease_s: float = 30.0
    patience_s: float | None = None
    """Caps the rows' own."""
    real: Real | None = None
    """The real instances to start in place of mocks."""
    strict: bool = False
    """Whether leases that only their time will end fail a row in the `vllm` dialect, too."""


@dataclass(kw_only=True)
class Result:
    """What came of a row."""

    row: str
    title: str
    total: int
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of everything that was not ok, by outcome."""
    misuse: Counter[str] = field(default_factory=Counter)
    """What instances had to answer wrongly to."""
    held: dict[str, str] = field(default_factory=dict)
    """By instance, what it still held after `QUIET_S`."""
    stranded: int = 0
    """Tickets that nobody pulled or gave back, and that only the end of their lease will end."""
    lost: int = 0
    """Requests that may have failed, because the process of the router that they were on was killed."""
    faults: list[str] = field(default_factory=list)
    """Why the row proves nothing, or who died."""
    seconds: float = 0.0
    slowest_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every request was served (or refused, where that is allowed) and nothing else is wrong."""
        served = self.outcomes["ok"] + self.outcomes["refused"] + min(self.lost, self.outcomes["failed"])
        return served == self.total and not (self.misuse or self.held or self.faults)


@dataclass(frozen=True)
class Stage:
    """Real instances that stay from row to row, because they start slowly, and what they answer undisturbed."""

    cluster: Cluster
    calm: Calm


@asynccontextmanager
async def stage(setting: Setting) -> AsyncIterator[Stage | None]:
    """Instances for all rows; None for mocks, of which every row has its own."""
    if setting.real is None:
        yield None
        return
    setting.logs.mkdir(parents=True, exist_ok=True)
    async with session() as http:
        cluster = Cluster(setting.dialect, setting.lease_s, setting.ports, setting.logs, http, None, setting.real)
        async with cluster:
            yield Stage(cluster, Calm())


async def play(row: Row, setting: Setting, there: Stage | None = None) -> Result:
    """Play one row with a fresh router, and with fresh instances unless some are there; once more where it did not
    start."""
    begun, result = time.monotonic(), Result(row=row.name, title=row.title, total=row.streams)
    for _ in range(TRIES):
        result = Result(row=row.name, title=row.title, total=row.streams)
        try:
            await _play(row, setting, result, there)
            break
        except (StrikeError, WrongError) as error:
            result.faults.append(str(error))
            break
        except NotStartedError as error:
            result.faults.append(str(error))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            result.faults.append(f"an instance does not answer the kit: {error!r}")
            break
    result.seconds = time.monotonic() - begun
    return result


async def _play(row: Row, setting: Setting, result: Result, there: Stage | None) -> None:
    logs, scars = setting.logs / row.name, Scars()
    logs.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(session())
        if there is None:
            cluster = Cluster(setting.dialect, setting.lease_s, setting.ports, logs, http, row.settings)
            await stack.enter_async_context(cluster)
        else:
            cluster = there.cluster
            await cluster.mend(row.settings)
        stack.callback(scars.clear)
        scars.url, scars.router = url, router = await _router(cluster, row, setting, logs, http)
        stack.callback(router.kill)
        await _warm_up(http, url, router, setting.seed)
        await _attack(row, setting, cluster, scars, http, url, result, there and there.calm)
        await _aftermath(setting, cluster, router, result)
        await router.stop()


async def _router(
    cluster: Cluster, row: Row, setting: Setting, logs: Path, http: aiohttp.ClientSession
) -> tuple[str, Process]:
    """Start the router, and wait until it answers something."""
    port, spare = setting.ports.take(), setting.ports.take()
    urls = [[mock.url for mock in mocks] for mocks in (cluster.prefill, cluster.decode)]
    template = setting.router + (row.options if setting.router == TANDEM else "")
    router = Process("router", command(template, *urls, port, spare), logs)
    router.start()
    try:
        await answering(http, f"http://127.0.0.1:{port}/health", router)
    except BaseException:
        router.kill()
        raise
    return f"http://127.0.0.1:{port}", router


async def _warm_up(http: aiohttp.ClientSession, url: str, router: Process, seed: int) -> None:
    """Plain requests until as many in a row as it takes to meet everybody are answered.

    Raises:
        NotStartedError: That never happens.
    """
    simple = KINDS[:2]
    warming = [ask(number, seed + 1, simple[number % 2]) for number in range(WARM)]
    limit, got = time.monotonic() + WARM_S, list[Exchange]()
    while time.monotonic() < limit:
        got = await asyncio.gather(*(exchange(http, url, one, 10.0) for one in warming))
        if all(one.status == 200 and one.end == "whole" for one in got):
            return
        await asyncio.sleep(0.5)
    said = [(one.status, one.end, one.error, one.body[:300]) for one in got][:2]
    raise NotStartedError(f"the router does not serve before anything is done to it: {said}")


async def _attack(
    row: Row,
    setting: Setting,
    cluster: Cluster,
    scars: Scars,
    http: aiohttp.ClientSession,
    url: str,
    result: Result,
    calm: Calm | None,
) -> None:
    """Strike and load, and judge what comes."""
    wanted = asks(row.streams, setting.seed)
    expected = None if calm is None else await calm.answers(url, wanted)
    wanted = wanted if expected is None else [one for one, _ in expected]
    if row.before is not None:
        await row.before(cluster, scars)
    striking = asyncio.create_task(_strike(row, cluster, scars))
    limit = min(row.limit_s, setting.patience_s or row.limit_s)
    got = await _load(row, wanted, http, url, limit)
    await striking
    result.lost = scars.lost
    result.faults += scars.faults
    secrets = list(cluster.secrets)
    for place, (one, came) in enumerate(zip(wanted, got, strict=True)):
        if expected is None:
            _count(result, one, judge(one, came, secrets, may_refuse=setting.dialect == "vllm"))
        else:
            _count(result, one, compare(one, came, expected[place][1], secrets))
    result.slowest_s = max(came.seconds for came in got)


async def _strike(row: Row, cluster: Cluster, scars: Scars) -> None:
    if row.midway is not None:
        await row.midway(cluster, scars)


async def _load(row: Row, wanted: list[Ask], http: aiohttp.ClientSession, url: str, limit: float) -> list[Exchange]:
    if row.sequential:
        return [await exchange(http, url, one, limit) for one in wanted]

    async def later(one: Ask) -> Exchange:
        await asyncio.sleep(row.every_s * one.number)
        return await exchange(http, url, one, limit)

    return await asyncio.gather(*map(later, wanted))


def _count(result: Result, ask: Ask, verdict: Verdict) -> None:
    result.outcomes[verdict.outcome] += 1
    if verdict.outcome != "ok":
        result.reasons[verdict.outcome, f"{verdict.reason} [{'n=2' if ask.wish.n > 1 else ask.kind}]"] += 1


async def _aftermath(setting: Setting, cluster: Cluster, router: Process, result: Result) -> None:
    """What is held, what was done wrongly, and who died."""
    limit = time.monotonic() + QUIET_S
    while True:
        states = await cluster.states()
        held = {name: what for name, state in states.items() if (what := _held(state, setting, result))}
        if not held or time.monotonic() > limit:
            break
        await asyncio.sleep(0.1)
    result.held = held
    result.stranded = sum(state["leases"] for state in states.values())
    result.misuse.update(cluster.misuse)
    for state in states.values():
        result.misuse.update(state["misuse"])
    result.faults += cluster.lost
    if router.ended is not None:
        result.faults.append(f"the router ended with {router.ended}")


def _held(state: dict[str, Any], setting: Setting, result: Result) -> str:
    """In words; leases of a dialect without release end by themselves, and those of a router that is gone."""
    counts = {**state["active"], "reservations": state["reservations"]}
    if (setting.dialect == "native" and not result.lost) or setting.strict:
        counts["leases"] = state["leases"]
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
