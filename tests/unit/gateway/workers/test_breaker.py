"""Who fails again and again is left alone for a while, by all processes of a gateway."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tandem.gateway.processes.board import Board, shared_memory
from tandem.gateway.workers.breaker import FAILURES_TO_OPEN, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker

NOW = 1000.0
URL = "http://d0"


def opened() -> Breaker:
    breaker = Breaker(Board(), URL)
    fail(breaker)
    return breaker


def fail(breaker: Breaker) -> None:
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.state(NOW) == "closed"
        breaker.failed(NOW)


def test_failures_in_a_row_open_it_and_its_pause_ends() -> None:
    breaker = opened()
    assert (breaker.state(NOW + 0.99), breaker.allows(NOW + 0.99)) == ("open", False)
    assert (breaker.state(NOW + FIRST_PAUSE_S), breaker.allows(NOW + FIRST_PAUSE_S)) == ("half-open", True)


def test_failures_with_something_good_between_them_do_not() -> None:
    breaker = Breaker(Board(), URL)
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(NOW)
        breaker.succeeded()
    assert breaker.allows(NOW)


def test_one_may_try_at_a_time_and_closes_it() -> None:
    breaker = opened()
    breaker.chosen(NOW + 1)
    assert not breaker.allows(NOW + 1.5)
    breaker.succeeded()
    assert breaker.state(NOW + 1.5) == "closed"


def test_a_trial_that_is_never_heard_of_again_does_not_block_for_ever() -> None:
    breaker = opened()
    breaker.chosen(NOW + 1)
    assert breaker.allows(NOW + 1 + FIRST_PAUSE_S)


def test_the_pause_doubles_up_to_a_limit_and_begins_anew_after_success() -> None:
    breaker, now, pauses = opened(), NOW, []
    for _ in range(7):
        pause = next(wait for wait in (1, 2, 4, 8, 16, 30) if breaker.allows(now + wait))
        pauses.append(pause)
        now += pause
        breaker.chosen(now)
        breaker.failed(now)
    assert pauses == [1, 2, 4, 8, 16, 30, LONGEST_PAUSE_S]
    breaker.succeeded()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now)
    assert breaker.allows(now + FIRST_PAUSE_S)


def test_requests_that_were_under_way_when_it_opened_do_not_lengthen_the_pause() -> None:
    breaker = opened()
    breaker.failed(NOW + 0.5)
    assert breaker.allows(NOW + FIRST_PAUSE_S)


@pytest.fixture
def two() -> Iterator[list[Board]]:
    """Of two processes."""
    memory = shared_memory(2)
    yield [Board(2, row, memory) for row in range(2)]
    os.close(memory)


def test_what_each_process_sees_fail_counts_for_all(two: list[Board]) -> None:
    first, second = (Breaker(board, URL) for board in two)
    first.failed(NOW)
    for breaker in (second, first):
        assert first.allows(NOW)
        breaker.failed(NOW)
    assert not first.allows(NOW)
    assert not second.allows(NOW)
    assert Breaker(two[1], "http://d1").allows(NOW)


def test_one_process_tries_for_all(two: list[Board]) -> None:
    first, second = (Breaker(board, URL) for board in two)
    fail(first)
    second.chosen(NOW + 1)
    assert not first.allows(NOW + 1.5)
    second.failed(NOW + 1.5)
    assert [first.allows(NOW + 1.5 + wait) for wait in (1.9, 2)] == [False, True]
    first.succeeded()
    assert second.state(NOW + 1.5) == "closed"


def test_it_stays_open_when_who_opened_it_dies(two: list[Board]) -> None:
    first, second = (Breaker(board, URL) for board in two)
    fail(first)
    two[0].clear(0)
    assert not second.allows(NOW)
    assert not Breaker(Board(2, 0, two[0]._descriptor), URL).allows(NOW)
