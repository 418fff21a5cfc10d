"""The fetcher beside its pulls: leases elsewhere are renewed in time and tickets given back, whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from types import SimpleNamespace

import pytest

from tandem.engine import fetcher as module
from tandem.engine.fetcher import Fetcher
from tandem.kv.messages import Keep, Release
from tandem.kv.puller import Peer
from tandem.protocol.kv import KVTransferParams


class FakeEngine:
    """Awaits tickets."""

    def __init__(self) -> None:
        self.options = SimpleNamespace(lease_seconds=30.0)
        self.tickets: list[KVTransferParams] = []
        self.failure: Exception | None = None

    def awaited(self) -> list[KVTransferParams]:
        if self.failure is not None:
            raise self.failure
        return self.tickets


class FakePuller:
    """Remembers what holders are told, and takes as long for it as it should."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.released: list[str] = []
        self.takes: dict[str, float] = {}
        self.failure: Exception | None = None
        self.closed = False

    async def keep(self, peer: Peer, keep: Keep, _: float) -> None:
        await asyncio.sleep(self.takes.get(peer.engine_id, 0))
        if self.failure is not None:
            raise self.failure
        self.kept.update(keep.tickets)

    async def release(self, peer: Peer, release: Release, _: float) -> None:
        await asyncio.sleep(self.takes.get(peer.engine_id, 0))
        assert not self.closed
        self.released.append(release.ticket)

    def close(self) -> None:
        self.closed = True


def ticket(name: str, holder: str = "holder", **fields) -> KVTransferParams:
    return KVTransferParams(
        remote_engine_id=holder, remote_request_id=name, remote_host="127.0.0.1", remote_port=1, **fields
    )


def run(scenario: Callable[[Fetcher, FakeEngine, FakePuller], Coroutine[None, None, None]]) -> None:
    async def around() -> None:
        engine, puller = FakeEngine(), FakePuller()
        fetcher = Fetcher(puller)  # type: ignore[arg-type]
        fetcher.start(engine, lambda: None)  # type: ignore[arg-type]
        await asyncio.wait_for(scenario(fetcher, engine, puller), 10)
        await fetcher.stop()
        assert puller.closed

    asyncio.run(around())


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)


def test_a_lease_is_renewed_as_its_holder_needs_it() -> None:
    async def scenario(fetcher: Fetcher, engine: FakeEngine, puller: FakePuller) -> None:
        engine.tickets = [ticket("long", "elsewhere", lease_seconds=60.0), ticket("own", "third")]
        await asyncio.sleep(0.1)
        engine.tickets.append(ticket("short", lease_seconds=0.6))
        await asyncio.sleep(0.7)
        assert puller.kept["short"] >= 4
        assert puller.kept["long"] == puller.kept["own"] == 1
        before = puller.kept.copy()
        engine.tickets = []
        await asyncio.sleep(0.2)
        assert puller.kept.total() - before.total() <= 1

    run(scenario)


def test_a_holder_out_of_reach_costs_the_others_nothing() -> None:
    async def scenario(fetcher: Fetcher, engine: FakeEngine, puller: FakePuller) -> None:
        puller.takes["frozen"] = 1.5
        engine.tickets = [ticket("lost", "frozen", lease_seconds=0.3), ticket("kept", lease_seconds=0.3)]
        await asyncio.sleep(0.6)
        assert puller.kept["kept"] >= 5
        assert puller.kept["lost"] == 0

    run(scenario)


@pytest.mark.parametrize("where", ["engine", "puller"])
def test_leases_are_renewed_after_something_unheard_of(where: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(fetcher: Fetcher, engine: FakeEngine, puller: FakePuller) -> None:
        faulty = engine if where == "engine" else puller
        faulty.failure = OverflowError("unheard of")
        engine.tickets = [ticket("a", lease_seconds=0.1)]
        await asyncio.sleep(0.1)
        faulty.failure = None
        await asyncio.sleep(0.2)
        assert puller.kept["a"] > 1

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert "unheard of" in caplog.text


def test_what_is_given_back_is_heard_of_before_the_end() -> None:
    async def scenario(fetcher: Fetcher, engine: FakeEngine, puller: FakePuller) -> None:
        puller.takes["holder"] = 0.3
        fetcher.give_back(ticket("a"))
        fetcher.give_back(ticket("kept for another", release_on_abort=False))
        begun = time.monotonic()
        await fetcher.stop()
        assert puller.released == ["a"]
        assert time.monotonic() - begun < 2

    run(scenario)
