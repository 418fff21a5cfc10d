"""A gateway of several processes: what they share, and what it costs when one is killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from fake_worker import FakeWorker, Script, answers, chunk, running, stream, whole_with_ticket, words
from gateway_rig import BODY, trial, until

from tandem.gateway.admission.queue_limits import QueueLimits
from tandem.gateway.config import GatewayConfig
from tandem.gateway.door.keys import add_key
from tandem.gateway.observability.counts_folder import PREFIX
from tandem.gateway.processes.board import Board, shared_memory
from tandem.gateway.processes.commons import Commons
from tandem.gateway.server import Gateway
from tandem.gateway.workers import budget
from tandem.gateway.workers.breaker import FAILURES_TO_OPEN, FIRST_PAUSE_S
from tandem.gateway.workers.ready import READY_S
from tandem.protocol.lifeline import Lifeline

EVENTS = 40
STREAM = BODY | {"stream": True}
SOON_S = 1.0
"""For a new connection, whatever has just died."""


async def slowly(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """A stream of about two seconds."""
    response = await stream(request, [])
    for _ in range(EVENTS):
        await response.write(chunk("Hel", chat=False))
        await asyncio.sleep(0.05)
    await response.write(chunk("", chat=False, end="stop") + b"data: [DONE]\n\n")
    return response


@dataclass
class Several:
    """A running gateway, whose supervisor is `process`."""

    url: str
    process: asyncio.subprocess.Process
    lifeline: Lifeline = field(repr=False)
    decodes: list[FakeWorker] = field(repr=False)
    http: aiohttp.ClientSession = field(repr=False)
    """Each request has a connection of its own."""

    @property
    def processes(self) -> dict[int, psutil.Process]:
        return {one.pid: one for one in psutil.Process(self.process.pid).children()}

    def holder(self, port: int) -> int | None:
        """Which process has the other end of the connection from a port of ours."""
        for pid, one in self.processes.items():
            if any(end.raddr and end.raddr.port == port for end in one.net_connections()):
                return pid
        return None

    async def opened(
        self, stack: AsyncExitStack, count: int, headers: dict[str, str]
    ) -> list[tuple[int, aiohttp.ClientResponse]]:
        """So many streams on each process that have begun, and the process of each."""
        found = []
        for _ in range(count):
            for pid, session in (await stack.enter_async_context(self.one_session_each())).items():
                response = await stack.enter_async_context(session.post(self.url + PATH, json=STREAM, headers=headers))
                assert response.status == 200, await response.text()
                await response.content.readany()
                found.append((pid, response))
        return found

    @asynccontextmanager
    async def one_session_each(self) -> AsyncIterator[dict[int, aiohttp.ClientSession]]:
        """Sessions that stay with a process, one for each."""
        async with AsyncExitStack() as stack:
            found: dict[int, aiohttp.ClientSession] = {}
            while len(found) < len(self.processes):
                sockets: list[socket.socket] = []
                connector = aiohttp.TCPConnector(limit=1, socket_factory=partial(noted, sockets))
                session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
                async with session.get(self.url + "/health") as response:
                    await response.read()
                if (pid := self.holder(sockets[0].getsockname()[1])) is not None:
                    found[pid] = session
            yield found


def noted(sockets: list[socket.socket], address: Any) -> socket.socket:
    """A new socket for a connector, which its session tells nobody of."""
    sockets.append(socket.socket(*address[:3]))
    return sockets[-1]


PATH = "/v1/completions"


@asynccontextmanager
async def several(count: int, decode: Script | Sequence[Script], folder: Path, *options: str) -> AsyncIterator[Several]:
    """A gateway of so many processes in front of fake workers."""
    scripts = (decode,) if callable(decode) else decode
    async with AsyncExitStack() as stack:
        prefill = await stack.enter_async_context(running(whole_with_ticket))
        decodes = [await stack.enter_async_context(running(script)) for script in scripts]
        urls = ["--prefill", prefill.url, *(word for one in decodes for word in ("--decode", one.url))]
        lifeline = Lifeline()
        stack.callback(lifeline.close)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tandem", "gateway", "--port", "0", "--workers", str(count), *urls, *options),
            env=os.environ | lifeline.environment | {"TMPDIR": str(folder)},
            pass_fds=[lifeline.descriptor],
            stdout=asyncio.subprocess.PIPE,
        )
        stack.push_async_callback(ended, process)
        lifeline.handed_over()
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        found = re.search(r"http://[^/]+", line)
        assert found is not None, line
        http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        rig = Several(found[0], process, lifeline, decodes, await stack.enter_async_context(http))
        async with rig.one_session_each():  # all of them serve
            yield rig


@asynccontextmanager
async def two_on_one_board(*decode: Script, **options: Any) -> AsyncIterator[tuple[list[Gateway], list[FakeWorker]]]:
    """Gateways as two processes have them, but both here, each with an address of its own; and the workers of both."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(running(script)) for script in decode]
        config = GatewayConfig(decode=tuple(one.url for one in workers), port=0, grace_s=0.1, **options)
        memory = shared_memory(2)
        stack.callback(os.close, memory)
        gateways = [Gateway(config, Commons(board=Board(2, row, memory), row=row)) for row in range(2)]
        for gateway in gateways:
            await gateway.start()
            stack.push_async_callback(gateway.stop)
        yield gateways, workers


class Busy:
    """A worker's script that takes a moment, and the most that it had to do at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._now = 0
        self.most = 0

    async def __call__(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self._now += 1
        self.most = max(self.most, self._now)
        await asyncio.sleep(self._seconds)
        self._now -= 1
        return await words(request, body)


async def ended(process: asyncio.subprocess.Process) -> int:
    """Its exit code, once it was asked to stop."""
    if process.returncode is None:
        process.terminate()
    return await process.wait()


async def ask(session: aiohttp.ClientSession, rig: Several | Gateway, headers: dict[str, str]) -> int:
    """The status of an answer."""
    async with session.post(rig.url + PATH, json=BODY, headers=headers) as response:
        await response.read()
        return response.status


async def metric(session: aiohttp.ClientSession, rig: Several, line: str) -> float:
    """The value of one line of /metrics, as this session's process tells it."""
    async with session.get(rig.url + "/metrics") as response:
        found = re.search(rf"^{re.escape(line)} (\S+)$", await response.text(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def counts_in(folder: Path) -> list[str]:
    """The files in which the processes keep what they count."""
    return sorted(path.name for path in folder.glob(f"{PREFIX}*/*"))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def slowest_connection(rig: Several, seconds: float) -> float:
    """Of many new ones in a row, each with a request."""
    slowest, until_then = 0.0, time.monotonic() + seconds
    while (began := time.monotonic()) < until_then:
        async with rig.http.get(rig.url + "/health") as response:
            assert response.status == 200
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.01)
    return slowest


@pytest.mark.full
def test_a_killed_process_costs_its_own_streams_and_nothing_else(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "a", None, 12)

    async def scenario() -> None:
        async with several(2, slowly, tmp_path, "--api-keys", str(tmp_path / "keys")) as rig, AsyncExitStack() as stack:
            streams = await rig.opened(stack, 6, bearer(key))
            counts = counts_in(tmp_path)
            for pid in (rig.process.pid, *rig.processes):
                os.kill(pid, signal.SIGUSR1)  # which is for `tandem serve`
            assert [await ask(rig.http, rig, bearer(key)) for _ in range(6)] == [429] * 6
            killed = streams[0][0]
            os.kill(killed, signal.SIGKILL)
            reading = asyncio.gather(*(response.read() for _, response in streams), return_exceptions=True)
            assert await slowest_connection(rig, 2.0) < SOON_S
            for (pid, _), whole in zip(streams, await reading, strict=True):
                if pid == killed:
                    assert isinstance(whole, aiohttp.ClientError)
                else:
                    assert isinstance(whole, bytes)
                    assert whole.endswith(b"data: [DONE]\n\n")
                    assert b"error" not in whole
            assert len(rig.processes) == 2
            assert killed not in rig.processes
            async with AsyncExitStack() as again:  # what the killed one had in flight counts no more
                await rig.opened(again, 6, bearer(key))
                assert await ask(rig.http, rig, bearer(key)) == 429
                assert await metric(rig.http, rig, 'tandem_gateway_key_requests_total{key="a"}') == 12 + 12
            assert counts_in(tmp_path) == counts

    asyncio.run(asyncio.wait_for(scenario(), 60))


@trial
async def test_what_a_worker_has_room_for_is_that_of_all_together() -> None:
    busy = Busy(0.01)
    limits = QueueLimits(max_in_flight=3)
    async with two_on_one_board(busy, queue=limits) as (gateways, _), aiohttp.ClientSession() as http:
        asking = (ask(http, gateway, {}) for _ in range(9) for gateway in gateways)
        assert await asyncio.gather(*asking) == [200] * 18
    assert busy.most == 3


def test_second_tries_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    @trial
    async def scenario() -> None:
        go_on = asyncio.Event()

        async def waits(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            await go_on.wait()
            return await words(request, body)

        failing = answers(500, {})
        async with two_on_one_board(failing, waits) as (gateways, workers), aiohttp.ClientSession() as http:
            here, there = (gateway._budget for gateway in gateways)
            first = asyncio.create_task(ask(http, gateways[0], {}))
            await workers[1].arrived.wait()
            assert (here.retrying, there.retrying) == (1, 0)
            second = asyncio.create_task(ask(http, gateways[1], {}))

            async def has_failed() -> bool:
                return there.retrying + there.waiting == 1

            await until(has_failed)
            assert (there.retrying, there.waiting, len(workers[1].bodies)) == (0, 1, 1)
            go_on.set()
            assert (await first, await second) == (200, 200)

    monkeypatch.setattr(budget, "AT_LEAST", 1)
    monkeypatch.setattr(budget, "SHARE", 0.0)
    scenario()


@pytest.mark.full
def test_no_process_gives_a_worker_more_than_it_has_room_for_beside_the_other(tmp_path: Path) -> None:
    """But for two that look at the same moment, each of which may find the last place free."""
    busy = Busy(0.1)

    async def scenario() -> None:
        async with several(2, busy, tmp_path, "--max-in-flight", "3") as rig, AsyncExitStack() as stack:
            each = [await stack.enter_async_context(rig.one_session_each()) for _ in range(9)]
            asking = (ask(session, rig, {}) for sessions in each for session in sessions.values())
            assert await asyncio.gather(*asking) == [200] * 18

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert busy.most in (3, 4)


@pytest.mark.full
def test_limits_breakers_and_metrics_are_those_of_all_together(tmp_path: Path) -> None:
    free, few = (add_key(tmp_path / "keys", name, rate, None) for name, rate in (("free", None), ("few", 20)))

    async def scenario() -> None:
        failing = answers(500, {"error": {"message": "broken"}})
        options = "--api-keys", str(tmp_path / "keys"), "--policy", "round_robin"
        async with several(2, (failing, words), tmp_path, *options) as rig, rig.one_session_each() as sessions:
            here, there = sessions.values()
            broken = rig.decodes[0].bodies
            while len(broken) < FAILURES_TO_OPEN:
                assert await ask(here, rig, bearer(free)) == 200
            opened = time.monotonic()
            await asyncio.sleep(2 * READY_S)
            answered = [await ask(there, rig, bearer(free)) for _ in range(6)]
            trials = int((time.monotonic() - opened) / FIRST_PAUSE_S)
            assert answered == [200] * 6
            assert len(broken) <= FAILURES_TO_OPEN + trials

            asked = await asyncio.gather(*(ask(one, rig, bearer(few)) for one in (here, there) for _ in range(20)))
            passed = asked.count(200)
            assert 20 <= passed <= 21
            assert asked.count(429) == 40 - passed

            for session in (here, there):
                requests = 'tandem_gateway_requests_total{endpoint="/v1/completions",outcome="%s"}'
                assert await metric(session, rig, requests % "refused") == 40 - passed
                assert await metric(session, rig, 'tandem_gateway_key_requests_total{key="few"}') == passed
                assert await metric(session, rig, "tandem_gateway_in_flight") == 0
                assert await metric(session, rig, 'tandem_gateway_worker_up{worker="decode-1"}') == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.full
def test_a_stop_lets_all_processes_end_their_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(2, slowly, tmp_path) as rig, AsyncExitStack() as stack:
            streams = await rig.opened(stack, 3, {})
            processes = rig.processes.values()
            rig.process.terminate()
            for _, response in streams:
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
            assert await rig.process.wait() == 0
            with pytest.raises(aiohttp.ClientConnectorError):
                await ask(rig.http, rig, {})
            assert not any(one.is_running() for one in processes)

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_without_their_supervisor_processes_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with several(2, words, tmp_path) as rig:
            processes = rig.processes.values()
            rig.process.kill()

            async def all_gone() -> bool:
                return not any(one.is_running() for one in processes)

            await until(all_gone)

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.full
def test_a_change_of_the_workers_reaches_all_processes_and_those_to_come(tmp_path: Path) -> None:
    headers = bearer(add_key(tmp_path / "keys", "ops", None, None))

    async def told(session: aiohttp.ClientSession, rig: Several, method: str, path: str, body: Any = None) -> Any:
        async with session.request(method, f"{rig.url}/admin/{path}", json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            topology = await response.json()
            return topology["epoch"], {one["name"]: (one["state"], one["in_flight"]) for one in topology["workers"]}

    async def scenario() -> None:
        options = "--admin-key-file", str(tmp_path / "keys"), "--policy", "round_robin"
        async with (
            several(2, (slowly, slowly), tmp_path, *options) as rig,
            running(words) as late,
            running(words) as last,
        ):
            async with rig.one_session_each() as sessions:
                here, there = sessions.values()
                async with AsyncExitStack() as stack:
                    streams = await rig.opened(stack, 2, {})
                    epoch, states = await told(there, rig, "POST", "workers/decode-0/drain")
                    assert (epoch, states["decode-0"][0]) == (2, "draining")
                    assert (await told(here, rig, "GET", "topology"))[1]["decode-0"][0] == "draining"
                    for _, response in streams:
                        assert (await response.read()).endswith(b"data: [DONE]\n\n")

                async def drained() -> bool:
                    return all(
                        [
                            (await told(one, rig, "GET", "topology"))[1]["decode-0"] == ("drained", 0)
                            for one in (here, there)
                        ]
                    )

                await until(drained)
                places = [{"role": "decode", "url": one.url} for one in (late, last)]
                await asyncio.gather(
                    *(
                        told(one, rig, "POST", "workers", place)
                        for one, place in zip((here, there), places, strict=True)
                    )
                )
                for one in (here, there):
                    epoch, states = await told(one, rig, "GET", "topology")
                    assert (epoch, list(states)) == (4, ["prefill-0", "decode-0", "decode-1", "decode-2", "decode-3"])
                killed = next(iter(sessions))
                os.kill(killed, signal.SIGKILL)
            async with rig.one_session_each() as sessions:
                assert killed not in sessions
                for one in sessions.values():
                    epoch, states = await told(one, rig, "GET", "topology")
                    assert (epoch, len(states)) == (4, 5)

                    async def all_serve(session: aiohttp.ClientSession = one) -> bool:
                        states = (await told(session, rig, "GET", "topology"))[1]
                        return [state for state, _ in states.values()] == ["up", "drained", "up", "up", "up"]

                    await until(all_serve)

    asyncio.run(asyncio.wait_for(scenario(), 120))
