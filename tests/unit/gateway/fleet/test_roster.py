"""Who shall serve, whatever operators and files ask for, in whatever order."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import RequestError
from tandem.gateway.fleet.roster import Entry, Roster, Wanted
from tandem.gateway.wire.worker import Worker, named

START = Roster(workers=named(["http://p0"], ["http://d0", "http://d1"]))


def refused(status: int, code: str | None, verb: Any) -> str:
    with pytest.raises(RequestError) as caught:
        verb()
    assert (caught.value.status, caught.value.code) == (status, code)
    return str(caught.value)


def names(roster: Roster) -> list[str]:
    return [worker.name for worker in roster.workers]


def test_who_is_added_gets_the_next_free_name_of_its_role() -> None:
    roster = START.added(Entry(role="decode", url="http://d2/")).added(Entry(role="prefill", url="http://p1"))
    assert names(roster) == ["prefill-0", "decode-0", "decode-1", "decode-2", "prefill-1"]
    assert roster.workers[3].url == "http://d2"
    assert roster.epoch == 3
    assert names(START.removed("decode-0").added(Entry(role="both", url="http://b")))[-1] == "decode-0"
    assert names(START.added(Entry(role="decode", url="http://d2"), ["decode-2"]))[-1] == "decode-3"
    assert names(START.added(Entry(role="decode", url="http://d2", name="blue")))[-1] == "blue"


def test_a_name_or_an_address_twice_is_refused() -> None:
    assert "http://d0 is there already" in refused(
        409, "worker_exists", lambda: START.added(Entry(role="prefill", url="http://d0/"))
    )
    refused(409, "worker_exists", lambda: START.added(Entry(role="decode", url="http://x", name="decode-0")))
    refused(400, None, lambda: START.added(Entry(role="decode", url="ftp://x")))


@pytest.mark.parametrize(
    "url",
    [
        "http://a\nb",
        "http://a\0",
        "http://a b",
        " http://a",
        'http://a"><b',
        "http://a/x",
        "http://a:0",
        "http://[x",
        "//a",
    ],
)
def test_an_address_that_something_else_could_be_made_of_is_refused(url: str) -> None:
    assert "write http://HOST:PORT" in refused(400, None, lambda: START.added(Entry(role="decode", url=url)))


@pytest.mark.parametrize("url", ["http://h_1.x-y:80", "HTTPS://h", "http://[fe80::1%eth0]:80/", "http://bücher.de"])
def test_other_addresses_are_taken(url: str) -> None:
    assert START.added(Entry(role="decode", url=url)).workers[-1].url == url.rstrip("/")


def test_a_long_list_takes_no_longer_for_each() -> None:
    many = tuple(Entry(role="decode", url=f"http://h{number}") for number in range(20_000))
    began = time.monotonic()
    assert names(START.replaced(Wanted(epoch=1, workers=many)))[-1] == "decode-19999"
    assert time.monotonic() - began < 2


def test_somebody_is_left() -> None:
    lone = Roster(workers=named([], ["http://d0", "http://d1"])).drained("decode-0")
    refused(409, "last_worker", lambda: lone.drained("decode-1"))
    refused(409, "last_worker", lambda: lone.removed("decode-1"))
    refused(409, "last_worker", lambda: lone.replaced(Wanted(epoch=2, workers=())))
    assert lone.undrained("decode-0").drained("decode-1").draining == {"decode-1"}


def test_a_list_that_was_made_from_another_one_is_refused() -> None:
    wanted = Wanted(epoch=1, workers=(Entry(role="both", url="http://d1", name="decode-1"),))
    roster = START.replaced(wanted)
    assert (names(roster), roster.epoch) == (["decode-1"], 2)
    assert "now it is 2" in refused(409, "stale_epoch", lambda: roster.replaced(wanted))
    assert roster.replaced(Wanted(epoch=2, workers=wanted.workers)) is roster


def test_only_who_is_there_or_leaves_can_be_removed() -> None:
    assert "there are prefill-0, decode-0, decode-1" in refused(404, "unknown_worker", lambda: START.removed("x"))
    refused(404, "unknown_worker", lambda: START.drained("x"))
    refused(404, "unknown_worker", lambda: START.removed("x", leaving=["x"]))
    hurried = START.removed("x", now=True, leaving=["x"])
    assert (names(hurried), hurried.hurried, hurried.epoch) == (names(START), {"x"}, 2)
    assert hurried.drained("decode-0").hurried == frozenset()


def test_a_file_is_followed_forward_only() -> None:
    one, other = named(["http://p0"], ["http://d0"]), named(["http://p0"], ["http://d1"])
    roster = Roster(workers=one, epoch=4, file_epoch=4).drained("decode-0").undrained("decode-0")
    assert roster.epoch == 6
    assert roster.as_a_file_says(one, 4) is roster
    refused(409, "stale_epoch", lambda: roster.as_a_file_says(other, 4))
    refused(409, "stale_epoch", lambda: roster.as_a_file_says(other, 3))
    newer = roster.as_a_file_says(other, 5)
    assert (newer.workers, newer.epoch, newer.file_epoch) == (other, 7, 5)
    assert newer.as_a_file_says(one, 20).epoch == 20
    assert roster.drained("decode-0").as_a_file_says(other, 5).draining == {"decode-0"}


NAME = st.sampled_from(["prefill-0", "decode-0", "decode-1", "x", "y"])
URL = st.sampled_from(["http://p0", "http://d0", "http://d0/", "http://d1", "http://x", "nonsense"])
PLACE = st.builds(
    Entry,
    role=st.sampled_from(["prefill", "decode", "both"]),
    url=URL,
    name=st.none() | NAME,
    draining=st.booleans(),
)
WORKERS = st.lists(st.builds(Worker, name=NAME, url=URL, role=st.just("decode")), max_size=3).map(tuple)
CALLS = st.one_of(
    st.tuples(st.just("added"), PLACE, st.frozensets(NAME)),
    st.tuples(st.just("drained"), NAME),
    st.tuples(st.just("undrained"), NAME),
    st.tuples(st.just("removed"), NAME),
    st.tuples(st.just("removed now"), NAME, st.frozensets(NAME)),
    st.tuples(st.just("replaced"), st.integers(-1, 1), st.lists(PLACE, max_size=3).map(tuple)),
    st.tuples(st.just("as_a_file_says"), WORKERS, st.integers(0, 6)),
)


def called(roster: Roster, verb: str, *args: Any) -> Roster:
    match verb:
        case "undrained":
            return roster.undrained(*args)
        case "removed now":
            return roster.removed(args[0], now=True, leaving=args[1])
        case "replaced":
            return roster.replaced(Wanted(epoch=roster.epoch + args[0], workers=args[1]))
    return getattr(roster, verb)(*args)


@given(st.lists(CALLS, max_size=20))
def test_whatever_is_asked_for_a_roster_is_sound_and_epochs_go_forward(calls: list[tuple[Any, ...]]) -> None:
    roster = START
    for verb, *args in calls:
        try:
            after = called(roster, verb, *args)
        except RequestError:
            continue
        assert after is roster or after.epoch > roster.epoch
        assert after.file_epoch >= roster.file_epoch
        assert len(set(names(after))) == len({worker.url for worker in after.workers}) == len(after.workers)
        assert after.draining < set(names(after))
        if verb == "replaced" and after is not roster:
            assert args[0] == 0
        roster = after
