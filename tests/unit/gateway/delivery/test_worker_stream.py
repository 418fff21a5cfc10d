from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.gateway.delivery.worker_stream import LONG_PIECE, first_apart

EVENT = b'data: {"id":"cmpl-1","choices":[{"index":0,"text":" token"}]}\n\n'


def test_the_first_of_many_events_goes_ahead() -> None:
    piece = EVENT * 200
    assert first_apart(piece) == (EVENT, EVENT * 199)


def test_one_event_stays_whole_however_long_it_is() -> None:
    long = EVENT.replace(b" token", b"x" * LONG_PIECE)
    assert first_apart(long) == (long,)
    assert first_apart(long[:-1]) == (long[:-1],)


def test_a_few_events_are_looked_at_as_one() -> None:
    assert first_apart(EVENT * 3) == (EVENT * 3,)


@given(st.lists(st.sampled_from([b"a", b"\n", b"\n\n", EVENT, b"x" * 3000]), max_size=40))
def test_nothing_is_lost_or_moved(parts: list[bytes]) -> None:
    piece = b"".join(parts)
    assert b"".join(first_apart(piece)) == piece
    assert all(first_apart(piece)) or not piece
