"""The pool follows the roster: who is new is on trial, who leaves finishes what it has."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import UsageError
from tandem.gateway.fleet.fleet import QUIET_S, ChangeConfig, Fleet
from tandem.gateway.fleet.probation import Probation
from tandem.gateway.fleet.roster import Entry, Roster
from tandem.gateway.processes.commons import Commons
from tandem.gateway.wire.exchange import Exchange
from tandem.gateway.wire.worker import named
from tandem.gateway.wire.worker_access import WorkerAccess
from tandem.gateway.workers.pool import Pool

DRAIN_S = 100.0


class NoProbation:
    def look(self) -> None:
        pass


class Clocked:
    """A fleet and its clock."""

    listening: asyncio.Task[None]

    def __init__(self, commons: Commons | None = None) -> None:
        self.now = 0.0
        self.start = Roster(workers=named(["http://p0"], ["http://d0", "http://d1"]))
        self.pool = Pool(self.start.workers)
        probation = cast(Probation, NoProbation())
        self.fleet = Fleet(
            self.pool,
            self.start,
            probation,
            access=WorkerAccess(),
            drain_s=DRAIN_S,
            commons=commons,
            clock=lambda: self.now,
        )
        for worker in self.pool.workers:
            self.pool.mark(worker, up=True)

    def wait(self, seconds: float) -> None:
        self.fleet.look()
        self.now += seconds
        self.fleet.look()

    @property
    def names(self) -> list[str]:
        return sorted(worker.name for worker in self.pool.workers)


def test_many_who_are_new_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, looks = Clocked(), []
    workers = named([], [f"http://h{number}" for number in range(50)])
    everybody = cast(property, Pool.workers).fget
    assert everybody is not None
    monkeypatch.setattr(Pool, "workers", property(lambda pool: looks.append(1) or everybody(pool)))
    fleet.fleet.adopt(Roster(workers=workers, epoch=2))
    assert len(looks) < len(workers)  # each is a walk through all of them


def test_who_is_new_is_on_trial_and_so_is_who_is_taken_back() -> None:
    clocked = Clocked()
    roster = clocked.start.added(Entry(role="decode", url="http://d2"))
    clocked.fleet.adopt(roster)
    *old, new = clocked.pool.workers
    clocked.pool.mark(new, up=True)
    assert [clocked.pool.vitals(worker).serves for worker in (*old, new)] == [True, True, True, False]
    clocked.pool.admit(new)
    assert clocked.pool.vitals(new).serves
    clocked.fleet.adopt(roster := roster.drained(new.name))
    assert not clocked.pool.vitals(new).serves
    clocked.fleet.adopt(roster.undrained(new.name))
    assert not clocked.pool.vitals(new).is_draining
    assert clocked.pool.vitals(new).is_on_trial


def test_who_leaves_finishes_what_it_has() -> None:
    async def scenario() -> None:
        clocked = Clocked()
        leaving = clocked.start.workers[1]
        exchange = Exchange(leaving, "stream")
        with clocked.pool.open(exchange):
            clocked.fleet.adopt(clocked.start.removed(leaving.name))
            clocked.wait(DRAIN_S - 1)
            assert leaving in clocked.pool.workers
            assert not clocked.pool.vitals(leaving).serves
        clocked.wait(QUIET_S / 2)
        assert leaving in clocked.pool.workers
        clocked.wait(QUIET_S / 2)
        assert leaving not in clocked.pool.workers
        assert exchange.why is None

    asyncio.run(scenario())


@pytest.mark.parametrize("hurried", [False, True])
def test_who_has_had_its_time_is_not_waited_for(hurried: bool) -> None:
    async def scenario() -> None:
        clocked = Clocked()
        leaving = clocked.start.workers[1]
        exchange = Exchange(leaving, "stream")
        with clocked.pool.open(exchange):
            clocked.fleet.adopt(clocked.start.removed(leaving.name, now=hurried))
            clocked.wait(0 if hurried else DRAIN_S)
            assert leaving not in clocked.pool.workers
            assert exchange.why == "was taken out of the service"

    asyncio.run(scenario())


def test_a_holder_of_keys_and_values_is_not_done_before_they_are_fetched() -> None:
    async def scenario() -> None:
        clocked = Clocked()
        prefill, decode, _ = clocked.start.workers
        clocked.fleet.adopt(clocked.start.drained(prefill.name))
        exchange = Exchange(decode, "stream")
        exchange.source = prefill
        with clocked.pool.open(exchange):
            clocked.wait(2 * QUIET_S)
            assert not clocked.fleet.is_drained(prefill)
        clocked.wait(QUIET_S)
        assert clocked.fleet.is_drained(prefill)

    asyncio.run(scenario())


def test_who_comes_back_while_it_leaves_stays() -> None:
    clocked = Clocked()
    gone = clocked.start.removed("decode-0")
    clocked.fleet.adopt(gone)
    clocked.fleet.adopt(gone.added(Entry(role="decode", url="http://d0", name="decode-0")))
    clocked.wait(2 * DRAIN_S)
    assert clocked.names == ["decode-0", "decode-1", "prefill-0"]


ORDERS = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 3)), max_size=20)


@given(ORDERS, st.lists(st.booleans(), min_size=9, max_size=9))
def test_whatever_order_rosters_come_in_the_newest_holds(order: list[Any], adds: list[bool]) -> None:
    clocked = Clocked()
    rosters = [clocked.start]
    for number, add in enumerate(adds):
        last = rosters[-1]
        most = max(worker.name for worker in last.workers)
        added = add or len(last.workers) < 2
        place = Entry(role="decode", url=f"http://n{number}")
        rosters.append(last.added(place) if added else last.removed(most))
    newest = clocked.start
    for number, wait_s in order:
        clocked.fleet.adopt(rosters[number])
        newest = max(newest, rosters[number], key=lambda roster: roster.epoch)
        assert clocked.fleet.roster is newest
        assert set(clocked.pool.workers) == set(newest.workers) | set(clocked.fleet.leaving)
        assert not set(newest.workers) & set(clocked.fleet.leaving)
        assert all(not clocked.pool.vitals(worker).is_draining for worker in newest.workers)
        assert all(clocked.pool.vitals(worker).is_draining for worker in clocked.fleet.leaving)
        clocked.wait(wait_s)
    clocked.wait(QUIET_S)
    assert set(clocked.pool.workers) == set(newest.workers)


def test_a_wait_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="drain_seconds: -1 s is no time to wait; choose 0 or more"):
        ChangeConfig(drain_s=-1)


class Hub:
    """In a supervisor's place: every message to every process, in one order, each process as late as it likes."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.told: list[bytes] = []

    async def listen(self, bus: Bus) -> None:
        """Pass on to one process, several messages at once at times."""
        heard = 0
        while True:
            await asyncio.sleep(0)
            if bus.handler is not None and self.chance.random() < 0.3:
                for body in self.told[heard:]:
                    heard += 1
                    bus.hear(body)


class Bus:
    """One process's end."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.handler: Any = None
        self.own: list[tuple[bytes, asyncio.Future[None]]] = []

    def subscribe(self, _: str, handler: Any) -> None:
        self.handler = handler

    async def tell(self, _: str, body: bytes) -> None:
        future = asyncio.get_running_loop().create_future()
        self.own.append((body, future))
        self.hub.told.append(body)
        await future

    def hear(self, body: bytes) -> None:
        self.handler(body)
        if self.own and self.own[0][0] is body:
            self.own.pop(0)[1].set_result(None)


@pytest.mark.parametrize("seed", range(20))
def test_processes_that_change_at_the_same_time_agree(seed: int) -> None:
    async def scenario() -> None:
        hub = Hub(random.Random(seed))
        fleets = []
        for row in range(3):
            bus = Bus(hub)
            clocked = Clocked(Commons(bus=cast(Any, bus), speaks=row == 0))
            fleets.append(clocked.fleet)
            clocked.listening = asyncio.create_task(hub.listen(bus))
        for fleet in fleets:
            await fleet.start()
        added = [Entry(role="decode", url=f"http://n{number}") for number in range(9)]
        changes = [
            fleets[number % 3].change(lambda roster, place=place: roster.added(place))
            for number, place in enumerate(added)
        ]
        await asyncio.gather(*changes)
        await asyncio.sleep(0.05)
        final = fleets[0].roster
        assert [fleet.roster for fleet in fleets] == [final] * 3
        assert final.epoch == 1 + len(added)
        assert {worker.url for worker in final.workers} >= {place.url for place in added}
        assert msgspec.json.decode(hub.told[-1], type=Roster) == final

    asyncio.run(asyncio.wait_for(scenario(), 20))
