"""A sequence's life: the states, and when an answer ends with which text."""

from __future__ import annotations

import pytest

from tandem.engine.sampling import SamplingParams
from tandem.engine.sequence import ENDS, NEXT, Request, Sequence, Status

END = 99


class Letters:
    """Token 0 is `a`, 1 is `b`, and so on; 99 is an end token without text."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return b"" if token == END else bytes([97 + token])


def sequence(**sampling: object) -> Sequence:
    fields = {"max_tokens": 100, "end_token_ids": frozenset({END})} | sampling
    return Sequence(Request(id="r", prompt=[1, 2], sampling=SamplingParams(**fields)), Letters())  # type: ignore[arg-type]


def feed(one: Sequence, tokens: list[int]) -> tuple[str, str | None, int]:
    text, count = "", 0
    for token in tokens:
        update = one.append(token)
        text, count = text + update.text, count + update.tokens
        if update.reason is not None:
            return text, update.reason, count
    return text, None, count


def test_end_token_ends_and_is_counted_but_not_shown() -> None:
    assert feed(sequence(), [0, 1, END, 2]) == ("ab", "stop", 3)


def test_length_ends_and_gives_what_was_held_back() -> None:
    assert feed(sequence(max_tokens=3, stops=("cX",)), [0, 1, 2]) == ("abc", "length", 3)


def test_end_token_gives_what_was_held_back() -> None:
    assert feed(sequence(stops=("bcd",)), [0, 1, 2, END]) == ("abc", "stop", 4)


def test_stop_string_is_cut_wherever_tokens_cut_it() -> None:
    assert feed(sequence(stops=("bc",)), [0, 1, 2, 3]) == ("a", "stop", 3)


@pytest.mark.parametrize(("minimum", "expected"), [(0, "a"), (2, "a"), (3, "abc"), (4, "abc")])
def test_stop_strings_wait_for_the_minimum(minimum: int, expected: str) -> None:
    text, _, _ = feed(sequence(stops=("b",), min_tokens=minimum), [0, 1, 2, 1, 5])
    assert text == expected


def test_states_go_forward_only() -> None:
    one = sequence()
    one.move(Status.PREFILLING)
    one.move(Status.DECODING)
    with pytest.raises(AssertionError, match="no way from DECODING to PREFILLING"):
        one.move(Status.PREFILLING)
    one.move(Status.FINISHED)
    assert one.ended


def test_every_state_but_an_end_can_end() -> None:
    assert set(NEXT) == set(Status) - ENDS
    assert all(after >= ENDS for after in NEXT.values())


def test_cache_need_leaves_out_the_last_token() -> None:
    assert Request(id="r", prompt=[1] * 5, sampling=SamplingParams(max_tokens=4)).cache_tokens == 8
    assert (
        Request(id="r", prompt=[1] * 5, sampling=SamplingParams(max_tokens=4), keep_for_remote=True).cache_tokens == 5
    )
