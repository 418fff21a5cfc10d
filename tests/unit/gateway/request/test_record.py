"""Where a request's time goes, as its record tells it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tandem.gateway.request.record import Record
from tandem.gateway.wire.connection import Response
from tandem.gateway.wire.exchange import Exchange
from tandem.gateway.wire.prefilled import Prefilled
from tandem.gateway.wire.worker import Worker

DECODE = Worker(name="decode-0", url="http://127.0.0.1:1", role="decode")


def exchange(*, sent_ago: float, prefilled: Prefilled | None = None, timing: str | None = None) -> Exchange:
    async def made() -> Exchange:
        return Exchange(DECODE, "stream")

    found = asyncio.run(made())
    found.sent = time.monotonic() - sent_ago
    found.prefilled = prefilled
    found._response = cast(Response, SimpleNamespace(header={"server-timing": timing or ""}.__getitem__))
    return found


def record(*, ago: float, **told: Any) -> Record:
    return Record(id="i", path="/v1/completions", began=time.monotonic() - ago, **told)


def prefilled(*, ago: float, ended_ago: float | None) -> Prefilled:
    now = time.monotonic()
    return Prefilled(sent=now - ago, ended=None if ended_ago is None else now - ended_ago)


def parts(one: Record, by: Exchange) -> dict[str, float]:
    one.first_bytes(by)
    assert one.ttft_s == pytest.approx(sum(one.parts.values()), abs=0.05)
    return {name: round(seconds, 1) for name, seconds in one.parts.items()}


def test_of_a_first_try_the_prefill_and_what_comes_after_it_are_apart() -> None:
    by = exchange(sent_ago=3, prefilled=prefilled(ago=7, ended_ago=3))
    assert parts(record(ago=7, tries=1), by) == {"prefill": 4, "transfer_first_decode": 3}


def test_an_early_ticket_does_not_shorten_the_prefill() -> None:
    by = exchange(sent_ago=6, prefilled=prefilled(ago=7, ended_ago=2))
    assert parts(record(ago=7, tries=1), by) == {"prefill": 5, "transfer_first_decode": 2}
    by = exchange(sent_ago=6, prefilled=prefilled(ago=7, ended_ago=None))
    assert parts(record(ago=7, tries=1), by) == {"prefill": 7, "transfer_first_decode": 0}


@pytest.mark.parametrize(
    ("timing", "decode"), [("queue;dur=9, decode;dur=1000.5", 1), ("decode;dur=99999", 3), ("decode;dur=0", 0)]
)
def test_a_worker_that_tells_its_part_splits_the_rest_of_it(timing: str, decode: float) -> None:
    by = exchange(sent_ago=3, prefilled=prefilled(ago=7, ended_ago=3), timing=timing)
    told = {"prefill": 4, "transfer": 3 - decode, "first_decode": decode}
    assert parts(record(ago=7, tries=1), by) == told


@pytest.mark.parametrize("timing", ["", "x", "decode", "decode;dur=-1", "decode;dur=1e9", "undecode;dur=2"])
def test_a_timing_that_says_nothing_of_it_splits_nothing(timing: str) -> None:
    by = exchange(sent_ago=3, prefilled=prefilled(ago=7, ended_ago=3), timing=timing)
    assert "transfer_first_decode" in parts(record(ago=7, tries=1), by)


def test_tries_that_failed_and_waits_have_parts_of_their_own() -> None:
    assert parts(record(ago=9, tries=2, queue_s=2), exchange(sent_ago=3)) == {"queue": 2, "retry": 4, "alone": 3}


def test_a_wait_is_counted_even_if_it_is_given_up() -> None:
    one = record(ago=0)
    with suppress(KeyError), one.queued():
        time.sleep(0.02)
        raise KeyError
    assert 0.02 <= one.queue_s < 1


def test_the_mean_gap_needs_two_events() -> None:
    one = record(ago=3)
    assert one.ttft_s is None
    one.first_bytes(None)
    assert one.parts == {}
    assert one.begun is not None
    one.ended, one.events = one.begun + 3, 4
    assert one.mean_gap_s == pytest.approx(1)
    one.events = 1
    assert one.mean_gap_s is None


def test_the_longest_gap_is_the_one_between_two_workers() -> None:
    one = record(ago=0)
    first, second = exchange(sent_ago=0), exchange(sent_ago=0)
    first.silence.begun, first.silence.since, first.silence.longest_s = 1, 4, 2
    one.heard(first)
    assert one.longest_gap_s == 2
    one.continuations = 1
    second.silence.begun, second.silence.longest_s = 10, 3
    one.heard(second)
    assert one.longest_gap_s == pytest.approx(6)
