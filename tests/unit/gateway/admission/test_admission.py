"""Who is let in, who waits, who is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import RequestError, UsageError
from tandem.gateway.admission import admission as admission_module
from tandem.gateway.admission.admission import Admission, Place
from tandem.gateway.admission.queue_limits import QueueLimits
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.request.record import Record
from tandem.gateway.wire.worker import Worker, named
from tandem.gateway.workers.capacity import FULL, NoRoomError, Occupancy
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.route import Route

TOTAL = 1000
ROOM = int(FULL * TOTAL)


@pytest.fixture(autouse=True)
def nobody_looks_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up that is lost is not made good by looking again."""
    monkeypatch.setattr(admission_module, "LOOK_S", 1e6)


class FakeReservations:
    """What workers say: the name of a reservation, None, or that there is no room."""

    def __init__(self, *said: str | NoRoomError | None) -> None:
        self.said = list(said)
        self.asked: list[tuple[str, int]] = []
        self.given_back: list[tuple[str, str]] = []

    async def keep(self, worker: Worker, tokens: int) -> str | None:
        self.asked.append((worker.name, tokens))
        await asyncio.sleep(0)
        said = self.said.pop(0)
        if isinstance(said, NoRoomError):
            raise said
        return said

    def give_back(self, worker: Worker, name: str) -> None:
        self.given_back.append((worker.name, name))


@dataclass
class Bench:
    """An admission over workers of known capacity, and who was let in, in order."""

    admission: Admission
    pool: Pool
    metrics: GatewayMetrics
    reservations: FakeReservations
    let_in: list[str] = field(default_factory=list)

    def asked(self, name: str, tokens: int = 100, **fields: Any) -> ClientRequest:
        body = {"prompt": [7] * (tokens - 1), "max_tokens": 1} | fields
        return ClientRequest.begin(Record(id=name, path="/v1/completions"), "", json.dumps(body).encode(), {})

    async def place(self, asked: ClientRequest, *, was_let_in: bool = False) -> Place:
        place = await self.admission.place(asked, partial(self.plan, asked), was_let_in=was_let_in)
        asked.record.tries += 1
        self.let_in.append(asked.record.id)
        return place

    def plan(self, asked: ClientRequest, with_room: bool) -> Route:
        route = Route.plan(self.pool, asked.demand, with_room=with_room)
        if route is None:
            raise RequestError("nobody", status=503)
        return route

    def begin(self, name: str, tokens: int = 100, **fields: Any) -> asyncio.Task[Place]:
        return asyncio.create_task(self.place(self.asked(name, tokens, **fields)))

    def look(self, worker: Worker, used: float, total: float = TOTAL) -> None:
        vitals = self.pool.vitals(worker)
        vitals.capacity.learn(Occupancy(total=total, used=used), vitals.load.tokens, 0)
        self.pool.on_change()

    def turned_away(self, reason: str) -> float:
        name = "tandem_gateway_turned_away_total"
        return self.metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0


def bench(workers: int = 1, *said: str | NoRoomError | None, prefill: int = 0, **config: Any) -> Bench:
    options = QueueLimits(**config)
    prefills, decodes = [[f"http://{kind}{i}" for i in range(n)] for kind, n in (("p", prefill), ("d", workers))]
    pool = Pool(named(prefills, decodes), max_in_flight=options.max_in_flight)
    metrics, reservations = GatewayMetrics(), FakeReservations(*said)
    admission = Admission(options, pool=pool, reservations=reservations, metrics=metrics)  # type: ignore[arg-type]
    made = Bench(admission, pool, metrics, reservations)
    for worker in pool.workers:
        pool.mark(worker, up=True)
        pool.learn(worker, ["reserve"] if said else [])
        made.look(worker, 0)
    return made


def trial(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        asyncio.run(asyncio.wait_for(scenario(), 10))

    test.__name__ = scenario.__name__
    return test


async def settle() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


async def refusal(task: asyncio.Task[Place]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await task
    return caught.value


@trial
async def test_with_room_nothing_is_waited_for() -> None:
    one = bench()
    with pytest.raises(StopIteration) as told:  # a coroutine that ends at its first step has not been suspended
        one.admission.place(asked := one.asked("a"), partial(one.plan, asked), was_let_in=False).send(None)
    place: Place = told.value.value
    assert one.pool.vitals(place.route.decode).load.tokens == 100
    place.end()
    assert one.pool.vitals(place.route.decode).load.requests == 0


@trial
async def test_the_next_is_let_in_when_one_ends() -> None:
    one = bench()
    first = await one.begin("a", 500)
    second, third = one.begin("b", 500), one.begin("c", 100)
    await settle()
    assert one.admission.waiting == 2  # the third would fit, but it is not its turn
    first.end()
    await asyncio.wait_for(asyncio.gather(second, third), 1)
    assert one.let_in == ["a", "b", "c"]
    assert one.metrics.registry.get_sample_value("tandem_gateway_queue_seconds_count") == 2


@trial
async def test_lower_priorities_go_first_and_equals_as_they_came() -> None:
    one = bench()
    first = await one.begin("a", 900)
    tasks = [one.begin(name, 900, priority=priority) for name, priority in zip("bcdef", (5, 0, 5, -1, 0), strict=True)]
    await settle()
    first.end()
    for _ in range(len(tasks)):
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks = list(rest)
        [one_done] = done
        one_done.result().end()
    assert one.let_in == list("aecfbd")


@trial
async def test_a_full_queue_refuses_with_the_time_to_come_again() -> None:
    one = bench(queue=2)
    await one.begin("a", 900)
    waiting = [one.begin(name) for name in "bc"]
    error = await refusal(one.begin("d"))
    assert (error.status, error.code) == (429, "overloaded")
    assert error.retry_after is not None
    assert 1 <= error.retry_after <= 60
    assert "2 requests wait already" in str(error)
    assert one.turned_away("queue_full") == 1
    assert not any(task.done() for task in waiting)


@trial
async def test_one_that_comes_first_pushes_the_last_one_out_of_a_full_queue() -> None:
    one = bench(queue=2)
    first = await one.begin("a", 900)
    waiting = [one.begin("b", priority=1), one.begin("c", priority=2)]
    await settle()
    urgent = one.begin("d", priority=0)
    assert (await refusal(waiting[1])).status == 429
    assert one.turned_away("pushed_out") == 1
    assert (await refusal(one.begin("e", priority=1))).status == 429
    first.end()
    await asyncio.gather(urgent, waiting[0])
    assert one.let_in == ["a", "d", "b"]


@trial
async def test_without_a_queue_there_is_room_or_a_refusal() -> None:
    one = bench(queue=0)
    (await one.begin("a", 900)).end()
    first = await one.begin("b", 900)
    assert (await refusal(one.begin("c"))).status == 429
    first.end()
    await one.begin("d", 900)


@trial
async def test_nobody_waits_longer_than_is_allowed() -> None:
    one = bench(queue_seconds=0.05)
    await one.begin("a", 900)
    error = await refusal(one.begin("b"))
    assert (error.status, error.code) == (429, "overloaded")
    assert one.turned_away("queue_seconds") == 1
    assert one.admission.waiting == 0


@trial
async def test_a_deadline_ends_the_wait() -> None:
    one = bench()
    first = await one.begin("a", 900)
    late, patient = one.begin("b", deadline_seconds=0.05), one.begin("c")
    error = await refusal(late)
    assert (error.status, error.code) == (504, "deadline_exceeded")
    assert one.turned_away("deadline") == 1
    assert (await refusal(one.begin("d", deadline_seconds=1e-9))).status == 504
    first.end()
    await patient


@trial
async def test_a_client_that_leaves_is_out_of_the_queue() -> None:
    one = bench()
    first = await one.begin("a", 900)
    gone, patient = one.begin("b"), one.begin("c")
    await settle()
    gone.cancel()
    await settle()
    assert one.admission.waiting == 1
    first.end()
    await patient
    assert one.let_in == ["a", "c"]


@trial
async def test_one_that_leaves_at_the_moment_it_is_called_passes_the_turn_on() -> None:
    one = bench()
    first = await one.begin("a", 900)
    gone, patient = one.begin("b", 900), one.begin("c", 900)
    await settle()
    first.end()
    gone.cancel()
    await asyncio.wait_for(patient, 1)


@trial
async def test_what_is_too_large_for_all_is_left_to_the_largest_to_refuse() -> None:
    one = bench(2)
    one.look(one.pool.workers[1], 0, total=2 * TOTAL)
    await one.begin("a", 2 * ROOM)
    place = await asyncio.wait_for(one.begin("b", 2 * TOTAL), 1)
    assert place.route.decode.name == "decode-1"
    assert one.pool.vitals(place.route.decode).load.tokens == 2 * ROOM  # it books nothing
    for name in "cd":  # too large for one of them only: it waits for the other
        waiting = one.begin(name, ROOM + 1)
        await settle()
        assert not waiting.done()
        waiting.cancel()


@trial
async def test_another_try_is_never_refused_and_goes_where_most_is_left() -> None:
    one = bench(2, queue=0)
    await one.begin("a", 900)
    await one.begin("b", 800)
    fullest = one.let_in.index("a")
    assert (await refusal(one.begin("c", 200))).status == 429
    place = await one.place(one.asked("d", 200), was_let_in=True)
    assert place.route.decode is one.pool.workers[1 - fullest]


@trial
async def test_a_worker_gets_no_more_requests_than_is_said() -> None:
    one = bench(max_in_flight=2)
    places = [await one.begin(name, 2) for name in "ab"]
    third = one.begin("c", 2)
    await settle()
    assert not third.done()
    places[0].end()
    await asyncio.wait_for(third, 1)


@trial
async def test_whoever_waits_is_called_when_others_give_room_back_or_a_worker_comes() -> None:
    one = bench(2)
    first, second = one.pool.workers
    for before, happens in (
        (lambda: one.pool.mark(second, up=False), lambda: one.look(first, 0)),
        (lambda: None, lambda: one.pool.mark(second, up=True)),
        (lambda: one.pool.drain(second), lambda: one.pool.undrain(second)),
    ):
        before()
        one.look(first, 900)
        waiting = one.begin("a")
        await settle()
        assert not waiting.done()
        happens()
        (await asyncio.wait_for(waiting, 1)).end()


@trial
async def test_who_waits_is_told_when_nobody_is_left() -> None:
    one = bench()
    await one.begin("a", 900)
    waiting = one.begin("b")
    await settle()
    one.pool.mark(one.pool.workers[0], up=False)
    assert (await refusal(waiting)).status == 503


@trial
async def test_many_answers_to_one_request_are_refused_together_or_not_at_all() -> None:
    one = bench(queue=2, queue_seconds=0.05)
    asked = one.asked("a", 500)
    places = [asyncio.create_task(one.place(asked)) for _ in range(5)]
    await asyncio.sleep(0.1)
    assert [place.done() for place in places] == [True, False, False, False, False]
    for place in places:
        (await asyncio.wait_for(place, 1)).end()
    full = await one.begin("b", 900)
    others = one.asked("c", 500)
    several = [asyncio.create_task(one.place(others)) for _ in range(5)]
    assert {(await refusal(task)).status for task in several} == {429}
    full.end()


@trial
async def test_a_worker_that_is_nearly_full_is_asked_for_room() -> None:
    one = bench(1, "r1", "r2", None, prefill=1)
    first = await one.begin("a", 700)
    assert (first.reservation, one.reservations.asked) == (None, [])
    second = await one.begin("b", 50)
    assert (second.reservation, one.reservations.asked) == ("r1", [("decode-0", 50)])
    second.end(used=True)
    assert one.reservations.given_back == []
    second = await one.begin("b", 50)
    second.end()
    assert one.reservations.given_back == [("decode-0", "r2")]
    assert (await one.begin("d", 50)).reservation is None


@trial
async def test_who_has_no_room_by_its_own_word_is_passed_by() -> None:
    one = bench(2, NoRoomError(), "r2", prefill=1)
    places = [await one.begin(name, 700) for name in "ab"]
    third = await one.begin("c", 50)
    assert third.reservation == "r2"
    assert {name for name, _ in one.reservations.asked} == {"decode-0", "decode-1"}
    refused = one.pool.workers[1 + ("decode-0", "decode-1").index(one.reservations.asked[0][0])]
    assert not one.pool.vitals(refused).capacity.has_room(one.pool.vitals(refused).load, 50)
    assert third.route.decode is not refused
    for place in (*places, third):
        place.end()
    assert {one.pool.vitals(worker).load.tokens for worker in one.pool.workers} == {0}


@trial
async def test_who_was_refused_by_the_worker_keeps_its_turn() -> None:
    one = bench(1, NoRoomError(), NoRoomError(), "r1", "r2", prefill=1)
    await one.begin("a", 700)
    first, second = one.begin("b", 50), one.begin("c", 50)
    await settle()
    assert one.admission.waiting == 2
    one.look(one.pool.workers[1], 700)
    await asyncio.gather(first, second)
    assert one.let_in == ["a", "b", "c"]


@trial
async def test_a_client_that_leaves_while_the_worker_is_asked_leaves_nothing() -> None:
    one = bench(1, "r1", prefill=1)
    await one.begin("a", 700)
    gone = one.begin("b", 50)
    await asyncio.sleep(0)
    gone.cancel()
    await settle()
    assert gone.cancelled()
    assert one.pool.vitals(one.pool.workers[1]).load.tokens == 700


@pytest.mark.parametrize(
    "wrong", [{"queue": -1}, {"queue_seconds": 0}, {"queue_seconds": float("inf")}, {"max_in_flight": 0}]
)
def test_numbers_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        QueueLimits(**wrong)


Step = tuple[str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "come", "end", "end", "leave", "look", "down", "up"]),
        st.integers(0, 5),
        st.integers(2, ROOM),
    ),
    max_size=40,
)


class Crowd:
    """Requests at random, and what must hold whatever they do."""

    def __init__(self, workers: int, queue: int, sizes: dict[str, int]) -> None:
        self.bench = bench(workers, queue=queue)
        self.queue = queue
        self.sizes = sizes
        self.tasks: dict[str, asyncio.Task[Place]] = {}
        self.waiting: list[tuple[int, int, str]] = []
        self.open: list[Place] = []

    async def step(self, number: int, step: Step) -> None:
        what, which, tokens = step
        workers = self.bench.pool.workers
        worker = workers[which % len(workers)]
        if what == "come":
            name = str(number)
            self.tasks[name] = self.bench.begin(name, tokens, priority=which)
            self.waiting.append((which, number, name))
        elif what == "end" and self.open:
            self.open.pop(which % len(self.open)).end()
        elif what == "leave" and self.waiting:
            _, _, name = self.waiting[which % len(self.waiting)]
            self.tasks[name].cancel()
        elif what == "look":
            self.bench.look(worker, self.bench.pool.vitals(worker).load.tokens + tokens % 300)
        elif what in ("down", "up"):
            drains = what == "down" and len(workers) > 1 and which == 1
            self.bench.pool.drain(worker) if drains else self.bench.pool.undrain(worker)
        seen = len(self.bench.let_in)
        await settle()
        self.check(seen)

    def check(self, seen: int) -> None:
        self.waiting.sort()
        for name in self.bench.let_in[seen:]:
            ahead = [one for one in self.waiting if not self.tasks[one[2]].done() or one[2] in self.bench.let_in[seen:]]
            assert ahead[0][2] == name, "somebody was overtaken"
            self.waiting.remove(ahead[0])
            self.open.append(self.tasks[name].result())
        self.waiting = [one for one in self.waiting if not self.tasks[one[2]].done()]
        assert self.bench.admission.waiting == len(self.waiting) <= self.queue
        for worker in self.bench.pool.workers:
            assert self.bench.pool.vitals(worker).load.tokens <= ROOM
        if self.waiting:
            head = self.bench.asked("head", self.sizes[self.waiting[0][2]])
            with pytest.raises(NoRoomError):
                self.bench.plan(head, True)

    async def drain(self) -> None:
        """Everybody who waits is let in or refused in the end."""
        workers = self.bench.pool.workers
        for worker in workers:
            self.bench.pool.undrain(worker)
        while True:
            seen = len(self.bench.let_in)
            for worker in workers:
                self.bench.look(worker, 0)
            await settle()
            self.check(seen)
            if not self.open:
                break
            for place in self.open:
                place.end()
            self.open.clear()
        assert not self.waiting, "somebody waits, and nobody is served"
        for task in self.tasks.values():
            assert task.done()
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, RequestError)
                assert error.status == 429


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, workers=st.integers(1, 3), queue=st.integers(0, 6))
def test_whatever_a_crowd_does(steps: Sequence[Step], workers: int, queue: int) -> None:
    async def scenario() -> None:
        crowd = Crowd(workers, queue, {str(number): tokens for number, (_, _, tokens) in enumerate(steps)})
        for number, step in enumerate(steps):
            await crowd.step(number, step)
        await crowd.drain()

    asyncio.run(asyncio.wait_for(scenario(), 20))
