"""Whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import pytest

from tandem.errors import RequestError
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.demand import Demand
from tandem.gateway.wire.exchange import Exchange
from tandem.gateway.wire.worker import Worker, named
from tandem.gateway.workers.breaker import FAILURES_TO_OPEN, FIRST_PAUSE_S
from tandem.gateway.workers.pool import Pool
from tandem.protocol.identity import Role


def pool(prefill: int, decode: int, *, down: tuple[str, ...] = ()) -> Pool:
    made = Pool(named([f"http://p{i}" for i in range(prefill)], [f"http://d{i}" for i in range(decode)]))
    for worker in made.workers:
        made.mark(worker, up=worker.name not in down)
    return made


def test_names_and_roles() -> None:
    workers = pool(2, 1).workers
    assert [(w.name, w.role, w.url) for w in workers] == [
        ("prefill-0", "prefill", "http://p0"),
        ("prefill-1", "prefill", "http://p1"),
        ("decode-0", "decode", "http://d0"),
    ]


def test_without_prefill_urls_the_others_do_both() -> None:
    lone = pool(0, 2)
    assert not lone.apart
    assert [(w.name, w.role) for w in lone.workers] == [("decode-0", "both"), ("decode-1", "both")]


DEMAND = Demand(ClientBody.decode(b'{"prompt": "x"}'))


def chosen(shared: Pool, role: Role = "decode", tried: Collection[Worker] = ()) -> str | None:
    worker = shared.choose(role, DEMAND, tried)
    return worker and worker.name


def test_workers_take_turns() -> None:
    shared = pool(1, 3)
    assert [chosen(shared) for _ in range(4)] == ["decode-0", "decode-1", "decode-2", "decode-0"]
    assert chosen(shared, "prefill") == "prefill-0"


def test_who_is_down_is_skipped_and_comes_back() -> None:
    shared = pool(1, 2, down=("decode-0",))
    assert {chosen(shared) for _ in range(3)} == {"decode-1"}
    shared.mark(shared.workers[1], up=True)
    assert {chosen(shared) for _ in range(2)} == {"decode-0", "decode-1"}


def test_who_was_tried_is_skipped() -> None:
    shared = pool(1, 2)
    tried = {shared.workers[1]}
    assert {chosen(shared, tried=tried) for _ in range(3)} == {"decode-1"}
    assert shared.has_candidates(shared.workers[:2])
    assert not shared.has_candidates(shared.workers)
    assert chosen(shared, tried=shared.workers) is None


def test_who_fails_again_and_again_is_left_alone_but_never_more_than_half() -> None:
    now = 1000.0
    shared = Pool(pool(0, 3).workers, clock=lambda: now)
    for worker in shared.workers:
        shared.mark(worker, up=True)
    for _ in range(FAILURES_TO_OPEN):
        shared.failed(shared.workers[0])
    assert shared.vitals(shared.workers[0]).breaker.state(now) == "open"
    assert {chosen(shared) for _ in range(4)} == {"decode-1", "decode-2"}
    for _ in range(FAILURES_TO_OPEN):
        shared.failed(shared.workers[1])
    assert {chosen(shared) for _ in range(6)} == {"decode-0", "decode-1", "decode-2"}
    shared.mark(shared.workers[0], up=False)
    assert {chosen(shared) for _ in range(4)} == {"decode-2"}
    now += FIRST_PAUSE_S
    shared.mark(shared.workers[0], up=True)
    assert {chosen(shared) for _ in range(3)} == {"decode-0", "decode-1", "decode-2"}


def test_one_request_tries_whether_a_worker_still_fails() -> None:
    now = 1000.0
    shared = Pool(pool(0, 2).workers, clock=lambda: now)
    for worker in shared.workers:
        shared.mark(worker, up=True)
    for _ in range(FAILURES_TO_OPEN):
        shared.failed(shared.workers[0])
    now += FIRST_PAUSE_S
    assert [chosen(shared) for _ in range(4)].count("decode-0") == 1


def test_every_missing_role_is_named() -> None:
    shared = pool(2, 1, down=("prefill-0", "prefill-1", "decode-0"))
    assert shared.missing == ("prefill", "decode")
    with pytest.raises(RequestError, match=r"prefill \(prefill-0, prefill-1\); decode \(decode-0\)") as caught:
        shared.require_open()
    assert caught.value.status == 503


def test_a_role_alone_takes_requests() -> None:
    pool(2, 1, down=("prefill-0", "prefill-1")).require_open()


def test_a_question_goes_to_anybody_who_is_up() -> None:
    assert [one.name for one in pool(2, 1).in_turn] == ["decode-0", "prefill-0", "prefill-1"]
    assert [one.name for one in pool(2, 1, down=("decode-0", "prefill-1")).in_turn] == ["prefill-0"]


@pytest.mark.parametrize(("down", "lost"), [((), True), (("decode-0",), False)])
def test_what_is_open_with_a_worker_that_goes_down_is_given_up_if_it_can_go_on(
    down: tuple[str, ...], lost: bool
) -> None:
    async def scenario() -> None:
        shared = pool(1, 1, down=down)
        exchange = Exchange(shared.workers[0], "prefill")
        with shared.open(exchange):
            shared.mark(shared.workers[0], up=False)
            assert exchange.why == ("does not answer its health checks" if lost else None)
        assert shared.vitals(shared.workers[0]).exchanges == set()

    asyncio.run(scenario())


def test_a_worker_is_down_until_it_answered() -> None:
    assert Pool(named([], ["http://d0"])).missing == ("both",)


def test_workers_come_and_go() -> None:
    shared = pool(1, 1)
    late = Worker(name="decode-1", url="http://d1", role="decode")
    shared.add(late)
    assert (chosen(shared), shared.down) == ("decode-0", ("decode-1",))
    shared.mark(late, up=True)
    assert {chosen(shared) for _ in range(2)} == {"decode-0", "decode-1"}
    shared.drain(late)
    assert {chosen(shared) for _ in range(2)} == {"decode-0"}
    shared.undrain(late)
    assert {chosen(shared) for _ in range(2)} == {"decode-0", "decode-1"}
    shared.remove(late)
    assert {chosen(shared) for _ in range(2)} == {"decode-0"}
    assert late not in shared.workers
    shared.failed(late)  # a request that it had learns of its end only now
    shared.mark(late, up=True)
    assert not shared.is_up(late)


@pytest.mark.parametrize(
    ("goes", "why"), [(Pool.remove, "was taken out of the service"), (Pool.restarted, "was started again")]
)
def test_what_is_open_with_a_worker_that_is_gone_goes_on_elsewhere(
    goes: Callable[[Pool, Worker], None], why: str
) -> None:
    async def scenario() -> None:
        shared = pool(1, 2)
        exchange = Exchange(shared.workers[1], "stream")
        with shared.open(exchange):
            goes(shared, shared.workers[1])
            assert exchange.why == why

    asyncio.run(scenario())


def goes_down(shared: Pool, worker: Worker) -> None:
    shared.mark(worker, up=False)
    shared.mark(worker, up=True)


def comes_again(shared: Pool, worker: Worker) -> None:
    shared.remove(worker)
    shared.add(worker)
    shared.mark(worker, up=True)


@pytest.mark.parametrize("goes", [goes_down, comes_again, Pool.restarted])
def test_what_a_worker_had_cached_is_gone_with_it(goes: Callable[[Pool, Worker], None]) -> None:
    long = Demand(ClientBody.decode(b'{"prompt": "%s"}' % (b"x" * 4096)))
    shared = Pool(pool(1, 2).workers, policy="prefix_aware", short_tokens=100)
    for worker in shared.workers:
        shared.mark(worker, up=True)
        shared.sent(long, worker)
    _, gone, other = shared.workers
    goes(shared, gone)
    assert not shared.is_short(long, gone)
    assert shared.is_short(long, other)
    assert {shared.choose("decode", long) for _ in range(4)} == {other}


def test_only_those_of_one_digest_go_together() -> None:
    shared = pool(2, 2)
    for worker, digest in zip(shared.workers, ("old", "new", "old", "new"), strict=True):
        shared.learn(worker, (), digest)
    old_prefill, new_prefill, old_decode, new_decode = shared.workers
    assert shared.choose("prefill", DEMAND, partner=new_decode) is new_prefill
    assert shared.choose("prefill", DEMAND, partner=old_decode) is old_prefill
    assert shared.choose("prefill", DEMAND, [new_prefill], partner=new_decode) is None
    shared.mark(old_prefill, up=False)
    assert {shared.choose("decode", DEMAND, partner="prefill") for _ in range(3)} == {new_decode}
    shared.mark(new_prefill, up=False)
    assert {shared.choose("decode", DEMAND, partner="prefill") for _ in range(3)} == {old_decode, new_decode}
    shared.learn(old_decode, (), None)  # who tells none, as vLLM, may go with anybody
    shared.mark(new_prefill, up=True)
    assert {shared.choose("decode", DEMAND, partner="prefill") for _ in range(3)} == {old_decode, new_decode}
