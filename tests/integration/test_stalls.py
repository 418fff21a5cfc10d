"""Who is silent is asked whether it lives, and given up at whatever stage an exchange with it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from gateway_rig import trial

from tandem.gateway.delivery.worker_client import WorkerClient
from tandem.gateway.wire.connection import Connection
from tandem.gateway.wire.exchange import Exchange, Stage, WorkerError
from tandem.gateway.wire.peer import Peer, Peers
from tandem.gateway.wire.worker import Worker, named
from tandem.gateway.workers import stalls
from tandem.gateway.workers.patience import Patience
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.stalls import StallWatch

SHORT = Patience(suspect_seconds=0.1, probe_seconds=0.1)
HASTY = Patience(suspect_seconds=0.1, slow_seconds=0.1)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b"4\r\nabc\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n\r\n"
HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(autouse=True)
def without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "PERIOD_S", 0.02)


class Server:
    """Accepts, says so much, and then nothing more, or drips; answers health checks or not."""

    def __init__(self, said: bytes, *, drip: bytes, lives: bool) -> None:
        self.said = said
        self.drip = drip
        self.lives = lives
        self.probes = 0
        self.connections: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        request = await reader.readuntil(b"\r\n\r\n")
        if request.startswith(b"GET /health"):
            self.probes += 1
            if self.lives:
                writer.write(HEALTHY)
        else:
            writer.write(self.said)
        with suppress(asyncio.CancelledError):  # which `start_server` would report
            while True:
                await asyncio.sleep(0.02)
                writer.write(self.drip)


class Bench:
    """One server behind a client, with a watch; another worker is up or not."""

    def __init__(self, pool: Pool, client: WorkerClient, server: Server) -> None:
        self.pool = pool
        self.client = client
        self.server = server

    @property
    def worker(self) -> Worker:
        return self.pool.workers[0]

    def usually(self, seconds: float, worker: int = 0, stage: Stage = "stream") -> None:
        """A worker's answers begin, and go on, after so long."""
        usual = Exchange(self.pool.workers[worker], stage)
        usual.silence.first_s = usual.silence.longest_s = seconds
        self.pool.vitals(usual.worker).ended(usual)

    async def read(self, stage: Stage = "stream", **options: Any) -> bytes:
        body = b""
        asked = Exchange(self.worker, stage, **options)
        async with self.client.post(asked, "/v1/completions", b"{}", {}) as exchange:
            async for piece in exchange.pieces():
                body += piece
        return body


@asynccontextmanager
async def bench(
    said: bytes = b"", *, drip: bytes = b"", lives: bool = False, others: bool = True, patience: Patience = SHORT
) -> AsyncIterator[Bench]:
    server = Server(said, drip=drip, lives=lives)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    pool = Pool(named([], [url, "http://127.0.0.1:9"]))
    for worker, up in zip(pool.workers, (True, others), strict=True):
        pool.mark(worker, up=up)
    peers = Peers()
    watch = asyncio.create_task(StallWatch(pool, peers, patience).run())
    try:
        yield Bench(pool, WorkerClient(peers, pool), server)
    finally:
        watch.cancel()
        await asyncio.wait([watch])
        peers.close()
        listening.close()
        for writer in server.connections:
            writer.transport.abort()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", HEAD, HEAD + PIECE], ids=range(4))
def test_the_frozen_are_given_up_whatever_they_said(said: bytes) -> None:
    @trial
    async def scenario() -> None:
        async with bench(said) as one:
            began = time.monotonic()
            with pytest.raises(WorkerError, match="decode-0 does not answer its health checks"):
                await one.read()
            assert time.monotonic() - began < 4
            assert not one.pool.is_up(one.worker)
            assert one.server.probes == 2

    scenario()


def test_who_was_given_up_and_came_back_has_longer_to_say_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    @trial
    async def scenario() -> None:
        async with bench() as one:

            async def given_up_after() -> float:
                began = time.monotonic()
                one.pool.mark(one.worker, up=True)
                with pytest.raises(WorkerError, match="decode-0 does not answer its health checks"):
                    await one.read()
                return time.monotonic() - began

            await given_up_after()
            # It is suspected after 0.1 s, and then asked twice: for 0.2 s each, then for 0.4 s each.
            assert await given_up_after() >= 0.5
            assert (longest := await given_up_after()) >= 0.9
            monkeypatch.setattr(stalls, "ALARM_S", 1e-3)
            assert await given_up_after() < longest

    scenario()


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + PIECE], ids=range(3))
def test_the_slow_are_waited_for(said: bytes) -> None:
    @trial
    async def scenario() -> None:
        async with bench(said, lives=True) as one:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(one.read(), 0.6)
            assert one.pool.is_up(one.worker)
            assert one.server.probes > 1
            assert one.pool.vitals(one.worker).exchanges == set()

    scenario()


def test_a_request_that_brings_out_a_bug_leaves_the_others_looked_after(caplog: pytest.LogCaptureFixture) -> None:
    @trial
    async def scenario() -> None:
        async with bench() as one:
            odd = Exchange(one.worker, "whole")
            odd.silence.seconds = lambda _: 1 / 0  # type: ignore[method-assign]
            one.pool.vitals(one.worker).exchanges.add(odd)
            with pytest.raises(WorkerError, match="decode-0 does not answer its health checks"):
                await one.read()

    scenario()
    assert "a request to decode-0 cannot be looked after" in caplog.text


@trial
async def test_the_last_one_is_not_given_up() -> None:
    async with bench(HEAD, others=False) as one:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.read(), 0.6)
        assert one.pool.is_up(one.worker)
        assert one.server.probes == 0


@pytest.mark.parametrize(("work", "is_too_long"), [(0, True), (1000, True), (100_000, False)])
def test_one_of_which_nothing_is_known_has_time_for_what_it_has_to_compute(work: int, is_too_long: bool) -> None:
    @trial
    async def scenario() -> None:
        async with bench(HEAD, lives=True, patience=Patience(suspect_seconds=0.1, unknown_seconds=0.2)) as one:
            error = WorkerError if is_too_long else TimeoutError
            with pytest.raises(error):
                await asyncio.wait_for(one.read(work=work), 0.9)

    scenario()


@trial
async def test_there_is_a_last_limit_for_everybody() -> None:
    async with bench(HEAD, lives=True, patience=Patience(longest_silence=0.3)) as one:
        with pytest.raises(WorkerError, match=r"was silent for \d s"):
            await one.read()
        assert one.pool.is_up(one.worker)


DRIPS = {
    "a head": (b"HTTP/1.1 200 OK\r\nX: ", b"x", "stream"),
    "a stream's first line": (HEAD, b"1\r\nx\r\n", "stream"),
    "a line": (HEAD + PIECE, b"1\r\nx\r\n", "stream"),
    "a whole answer": (WHOLE, b"x\n", "whole"),
}


@pytest.mark.parametrize("place", DRIPS)
def test_who_drips_bytes_is_silent(place: str) -> None:
    said, drip, stage = DRIPS[place]

    @trial
    async def scenario() -> None:
        async with bench(said, drip=drip, lives=True, patience=HASTY) as one:
            one.usually(0.01, stage=stage)
            with pytest.raises(WorkerError, match=r"was silent for \d s") as caught:
                await asyncio.wait_for(one.read(stage), 0.6)
            assert caught.value.cause == "silent"
            assert one.pool.is_up(one.worker)

    scenario()


@pytest.mark.parametrize(
    ("said", "drip", "stage"), [(HEAD, PIECE, "stream"), (WHOLE, b"x" * 3000, "whole")], ids=["lines", "bytes"]
)
def test_who_says_something_whole_now_and_then_is_not(said: bytes, drip: bytes, stage: Stage) -> None:
    @trial
    async def scenario() -> None:
        async with bench(said, drip=drip, lives=True, patience=HASTY) as one:
            one.usually(0.01, stage=stage)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(one.read(stage), 0.6)

    scenario()


async def is_given_up(one: Bench, **asked: Any) -> bool:
    """Within 0.6 s, though its worker lives."""
    try:
        await asyncio.wait_for(one.read(**asked), 0.6)
    except WorkerError:
        return True
    except TimeoutError:
        return False
    raise AssertionError


@trial
async def test_how_long_the_slow_are_waited_for() -> None:
    async with bench(lives=True, patience=HASTY) as one:
        assert not await is_given_up(one), "nobody knows how long it takes"
        one.usually(0.01, worker=1)
        assert await is_given_up(one), "its like are faster"
        one.usually(0.2)
        assert not await is_given_up(one), "it always takes longer"
    async with bench(lives=True, patience=HASTY) as one:
        one.usually(0.04)
        assert await is_given_up(one)
        assert not await is_given_up(one, work=5000), "there is more to do"
        assert not await is_given_up(one, stage="whole"), "it has never done that"
        assert await is_given_up(one, too_slow=1), "twice as long"
        assert not await is_given_up(one, too_slow=2), "the third one is waited for"
        one.pool.mark(one.pool.workers[1], up=False)
        assert not await is_given_up(one), "there is nobody else"


@trial
async def test_who_waits_for_another_is_excused() -> None:
    async with bench(lives=True, patience=HASTY) as one:
        one.usually(0.01)
        exchange = Exchange(one.worker, "stream")
        exchange.silence.excuse()

        async def read() -> None:
            async with one.client.post(exchange, "/", b"{}", {}):
                raise AssertionError

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.5)
        assert not reading.done()
        assert one.server.probes > 0
        exchange.silence.end_excuse()
        began = time.monotonic()
        with pytest.raises(WorkerError, match="silent"):
            await reading
        assert 0.1 < time.monotonic() - began < 5


@trial
async def test_a_client_that_reads_slowly_is_no_silence_of_the_worker() -> None:
    async with bench(HEAD + PIECE) as one:
        async with one.client.post(Exchange(one.worker, "stream"), "/", b"{}", {}) as exchange:
            async for _ in exchange.pieces():
                await asyncio.sleep(0.8)
                break
        assert one.server.probes == 0


@trial
async def test_who_usually_takes_long_is_given_time() -> None:
    async with bench(HEAD) as one:
        one.usually(10.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.read(), 0.6)
        assert one.server.probes == 0
        for _ in range(300):
            one.pool.vitals(one.worker).ended(Exchange(one.worker, "stream"))
        with pytest.raises(WorkerError):
            await one.read()


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + PIECE], ids=range(3))
def test_an_exchange_is_lost_at_any_stage_for_the_first_reason(said: bytes) -> None:
    @trial
    async def scenario() -> None:
        async with bench(said, patience=Patience()) as one:
            reading = asyncio.create_task(one.read())
            await asyncio.sleep(0.1)
            [exchange] = one.pool.vitals(one.worker).exchanges
            exchange.lose("is to go")
            exchange.lose("is to go for another reason")
            with pytest.raises(WorkerError, match=r"^decode-0 is to go; try"):
                await reading
            assert one.pool.vitals(one.worker).exchanges == set()
            exchange.lose("is gone")  # nothing happens

    scenario()


@trial
async def test_what_is_lost_while_nobody_reads_is_told_to_the_next_who_does() -> None:
    async with bench(HEAD + PIECE, patience=Patience()) as one:

        async def lose_it() -> None:
            async with one.client.post(Exchange(one.worker, "stream"), "/", b"{}", {}) as exchange:
                async for _ in exchange.pieces():
                    exchange.lose("is to go")

        with pytest.raises(WorkerError, match="is to go"):
            await lose_it()


@trial
async def test_what_is_lost_as_its_head_comes_is_lost() -> None:
    async with bench(HEAD, patience=Patience()) as one:
        exchange = Exchange(one.worker, "stream")

        class Unlucky(Peer):
            async def dial(self) -> Connection:
                exchange.lose("is to go")  # before the connection is handed out
                return await super().dial()

        peer = Unlucky(one.worker.url)
        with pytest.raises(WorkerError, match="decode-0 is to go"):
            await exchange.head(peer, peer.request("POST", "/"))
