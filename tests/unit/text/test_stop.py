"""Stop strings: found wherever the pieces are cut, never sent, and nothing else is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.text.stop import StopMatcher

words = st.text("ab", min_size=1, max_size=3)


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out = "".join(matcher.push(piece) for piece in pieces)
    return out if matcher.stopped else out + matcher.flush(), matcher.stopped


@given(stops=st.lists(words, max_size=3), pieces=st.lists(words, max_size=12))
def test_equals_searching_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    got, stopped = run(tuple(stops), pieces)
    assert stopped == bool(ends)
    if not ends:
        assert got == text
        return
    # What is sent ends where a stop string begins, and holds none itself.
    assert any(text.startswith(got + stop) for stop in stops)
    assert not any(stop in got for stop in stops)


def test_text_goes_out_as_soon_as_it_can() -> None:
    matcher = StopMatcher(("</s>",))
    assert matcher.push("hello <") == "hello "
    assert matcher.push("/") == ""
    assert matcher.push("b>") == "</b>"


def test_the_earliest_of_several_wins() -> None:
    assert run(("d", "bc"), ["abcd"]) == ("a", True)


def test_nothing_follows_a_stop() -> None:
    matcher = StopMatcher(("x",))
    assert matcher.push("ax") == "a"
    assert matcher.push("more") == ""
    assert matcher.flush() == ""
