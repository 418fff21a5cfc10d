"""Who fails again and again is left alone for a while."""

from __future__ import annotations

from tandem.gateway.breaker import FAILURES_TO_OPEN, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.state(at) == "closed"
        breaker.failed(at)
    return breaker


def test_failures_in_a_row_open_it_and_its_pause_ends() -> None:
    breaker = opened()
    assert (breaker.state(0.99), breaker.allows(0.99)) == ("open", False)
    assert (breaker.state(FIRST_PAUSE_S), breaker.allows(FIRST_PAUSE_S)) == ("half-open", True)


def test_failures_with_something_good_between_them_do_not() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.allows(0)


def test_one_may_try_at_a_time_and_closes_it() -> None:
    breaker = opened()
    breaker.chosen(1)
    assert not breaker.allows(1.5)
    breaker.succeeded()
    assert breaker.state(1.5) == "closed"


def test_a_trial_that_is_never_heard_of_again_does_not_block_for_ever() -> None:
    breaker = opened()
    breaker.chosen(1)
    assert breaker.allows(1 + FIRST_PAUSE_S)


def test_the_pause_doubles_up_to_a_limit_and_begins_anew_after_success() -> None:
    breaker, now, pauses = opened(), 0.0, []
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
    breaker.failed(0.5)
    assert breaker.allows(FIRST_PAUSE_S)
