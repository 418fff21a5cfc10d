"""A sequence's life: the states, when an answer ends with which text, and answers that began elsewhere."""

from __future__ import annotations

import pytest

from tandem.engine.request import Request
from tandem.engine.sampled import Sampled
from tandem.engine.sampling import SamplingParams
from tandem.engine.sequence import ENDS, NEXT, Sequence, Status
from tandem.engine.update import Update
from tandem.kv.lease import Lease
from tandem.kv.prefix import BlockKeys
from tandem.protocol.logprobs import TokenLogprobs

END = 99
PROMPT = [1, 2]


class Letters:
    """Token 0 is `a`, 1 is `b`, and so on; 99 is an end token without text."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return b"" if token == END else bytes([97 + token])


def sequence(output: tuple[int, ...] = (), sent: int = 0, **sampling) -> Sequence:
    fields = {"max_tokens": 100, "end_token_ids": frozenset({END})} | sampling
    request = Request(id="r", prompt=PROMPT, sampling=SamplingParams(**fields), output=output, sent=sent)
    return Sequence(request, Letters(), BlockKeys(b"", 4), arrival=0, choice=0)


def feed(one: Sequence, tokens: list[int]) -> tuple[str, str | None, int]:
    """The text, the reason and the number of tokens taken."""
    text, count = "", 0
    for token in tokens:
        update = one.append(Sampled(token))
        text, count = text + update.text, count + len(update.tokens)
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


@pytest.mark.parametrize(("minimum", "count"), [(0, 1), (1, 1), (2, 3), (3, 3), (4, 5)])
def test_end_tokens_wait_for_the_minimum(minimum: int, count: int) -> None:
    assert feed(sequence(min_tokens=minimum), [END, 1, END, 3, END])[1:] == ("stop", count)


def test_every_update_tells_its_tokens_and_their_log_probabilities() -> None:
    logprobs = TokenLogprobs(token=3, logprob=-0.5, top=())
    update = sequence().append(Sampled(3, logprobs))
    assert update == Update("d", (3,), logprobs=(logprobs,))


def test_states_follow_the_arrows() -> None:
    one = sequence()
    for status in (Status.PREFILLING, Status.WAITING, Status.TRANSFERRING, Status.DECODING, Status.WAITING):
        one.move(status)
    one.move(Status.PREFILLING)
    one.move(Status.DECODING)
    with pytest.raises(AssertionError, match="no way from DECODING to PREFILLING"):
        one.move(Status.PREFILLING)
    one.move(Status.FINISHED)
    assert one.ended


def test_every_state_but_an_end_can_end() -> None:
    assert set(NEXT) == set(Status) - ENDS
    assert all(after >= ENDS for after in NEXT.values())


@pytest.mark.parametrize(("output", "keep", "tokens"), [((), False, 8), ((), True, 5), ((3, 4), True, 7)])
def test_cache_need_leaves_out_the_last_token(output: tuple[int, ...], keep: bool, tokens: int) -> None:
    sampling = SamplingParams(max_tokens=4)
    request = Request(id="r", prompt=[1] * 5, sampling=sampling, output=output, keep_for_remote=keep)
    assert request.cache_tokens == tokens


def test_reserved_ones_go_first_then_by_priority_then_by_arrival() -> None:
    def one(arrival: int, priority: int = 0, reserved: bool = False) -> Sequence:
        request = Request(id=f"{arrival}", prompt=PROMPT, sampling=SamplingParams(), priority=priority)
        made = Sequence(request, Letters(), BlockKeys(b"", 4), arrival=arrival, choice=0)
        made.reservation = Lease() if reserved else None
        return made

    ordered = [one(9, 3, True), one(7, -1), one(1), one(2), one(0, 1)]
    shuffled = [ordered[place] for place in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=lambda s: s.order) == ordered


def test_only_the_first_token_of_several_choices_parts_them() -> None:
    request = Request(id="r", prompt=PROMPT, sampling=SamplingParams(), choices=(0, 1))
    one = Sequence(request, Letters(), BlockKeys(b"", 4), arrival=0, choice=0)
    assert one.fork
    one.append(Sampled(3))
    assert not one.fork
    assert not sequence().fork


ANSWER = [0, 1, 2, 3, 1, 4, 5, END]
"""abcdbef and the end."""


@pytest.mark.parametrize("begun", range(9))
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"max_tokens": 5},
        {"stops": ("dbe",)},
        {"stops": ("cX", "db")},
        {"stops": ("b",), "min_tokens": 3},
        {"min_tokens": 8},
        {"stops": ("ab",), "min_tokens": 4, "max_tokens": 7},
    ],
    ids=str,
)
def test_a_resumed_answer_ends_as_it_would_have_and_the_client_misses_nothing(begun: int, sampling: dict) -> None:
    text, reason, count = feed(sequence(**sampling), ANSWER)
    done = ANSWER[: min(begun, count)]
    for sent in range(len(text) + 1):
        one = sequence(tuple(done), sent, **sampling)
        assert one.output_count == len(done)
        if len(done) == count:
            assert one.over == reason
            closing = one.close()
            assert (closing.text, closing.reason, closing.tokens) == (text[sent:], reason, ())
        else:
            assert one.over is None
            rest, how, more = feed(one, ANSWER[len(done) :])
            assert (rest, how, len(done) + more) == (text[sent:], reason, count), f"{sent} characters sent"


def test_a_client_that_is_ahead_gets_nothing_twice() -> None:
    """The instance that broke off had sent text that this one still holds back: it may begin a stop string."""
    one = sequence((0, 1), sent=2, stops=("bcX",))
    texts = [one.append(Sampled(token)).text for token in (2, 3, 4)]
    assert texts == ["", "cd", "e"]


def test_what_came_after_the_end_elsewhere_is_not_shown() -> None:
    assert sequence((0, END, 1, 2)).close() == Update("a", reason="stop")
    assert sequence((0, 1, 2, 3), max_tokens=2).close() == Update("ab", reason="length")
