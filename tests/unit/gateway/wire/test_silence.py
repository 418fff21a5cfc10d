"""What is a silence, whose it is, and how long one is expected to be."""

from __future__ import annotations

import pytest

from tandem.gateway.wire import silence as module
from tandem.gateway.wire.silence import FORGET, LEAST_WORK, Silence, Silences


class Clock:
    """Time that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lasting(first_s: float, longest_s: float = 0.0, work: float = 0) -> Silence:
    silence = Silence(work)
    silence.first_s, silence.longest_s = first_s, longest_s
    return silence


def begun() -> Silence:
    silence = Silence()
    silence.end()
    return silence


def test_the_longest_is_kept_of_each_kind_and_the_clients_own_slowness_is_none(clock: Clock) -> None:
    silence = Silence()
    for seconds, slow_client_s in ((3, 5), (1, 0), (2, 50), (1, 0)):
        clock.now += seconds
        assert silence.seconds(clock.now) == seconds
        silence.end()
        clock.now += slow_client_s
        assert silence.seconds(clock.now) == 0
        silence.begin()
    assert (silence.first_s, silence.longest_s, silence.begun) == (3, 2, 103)


def test_the_head_of_a_stream_does_not_begin_it(clock: Clock) -> None:
    silence = Silence()
    for seconds in (1, 4):
        clock.now += seconds
        silence.end(begins=seconds == 4)
        assert silence.has_begun == (seconds == 4)
        silence.begin()
    assert silence.first_s == 4


def test_who_waits_for_another_begins_to_be_silent_when_that_one_is_done(clock: Clock) -> None:
    silence = Silence()
    silence.excuse()
    clock.now += 9
    assert silence.is_excused
    silence.end_excuse()
    clock.now += 1
    assert (silence.is_excused, silence.seconds(clock.now)) == (False, 1)
    silence.end()
    silence.end_excuse()
    assert silence.seconds(clock.now) == 0, "it has begun, and its client is slow"


def test_expected_is_the_longest_of_late_of_those_who_were_as_far() -> None:
    silences = Silences()
    assert silences.expected_s("stream", Silence()) is None
    assert silences.usual_s("stream", Silence()) == 0
    for seconds in (1, 4, 2):
        silences.learn("stream", lasting(seconds, seconds / 10))
    assert silences.expected_s("stream", Silence()) == pytest.approx(4 * FORGET)
    assert silences.expected_s("stream", begun()) == pytest.approx(0.4 * FORGET)
    assert silences.expected_s("whole", Silence()) is None
    for _ in range(300):
        silences.learn("stream", lasting(0.5))
    assert silences.expected_s("stream", Silence()) == pytest.approx(0.5, rel=0.05)


def test_expected_grows_with_the_work_but_does_not_shrink() -> None:
    silences = Silences()
    silences.learn("prefill", lasting(2, work=10 * LEAST_WORK))
    assert silences.expected_s("prefill", Silence(50 * LEAST_WORK)) == pytest.approx(10)
    assert silences.expected_s("prefill", Silence(1)) == pytest.approx(2)
    assert silences.usual_s("prefill", Silence(50 * LEAST_WORK)) == 2
    silences.learn("prefill", lasting(0.1, work=1))
    assert silences.expected_s("prefill", Silence(50 * LEAST_WORK)) == pytest.approx(10 * FORGET)


def test_little_work_is_all_the_same() -> None:
    silences = Silences()
    silences.learn("prefill", lasting(2, work=1))
    assert silences.expected_s("prefill", Silence(LEAST_WORK)) == 2
