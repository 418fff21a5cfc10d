"""Incremental text equals text at once, and never shows half a character; families are in test_tokenizer.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.text.detokenizer import HALF, Detokenizer, Start, join_text
from tandem.text.tokenizer import Tokenizer


class Bytes:
    """Token n is byte n."""

    def __init__(self, drops_first_space: bool) -> None:
        self.drops_first_space = drops_first_space

    def bytes_of(self, token: int) -> bytes:
        return bytes([token])


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_model)


def test_pieces_make_up_the_text(tokenizer: Tokenizer) -> None:
    @given(st.text(max_size=60).filter(lambda text: "<" not in text))  # special tokens have no text
    @settings(max_examples=200, deadline=None)
    def check(text: str) -> None:
        detokenizer = Detokenizer(tokenizer)
        pieces = [detokenizer.push(token) for token in tokenizer.encode(text, special=False)]
        assert "".join(pieces) + detokenizer.flush() == text
        assert HALF in text or not any(HALF in piece for piece in pieces)

    check()


@given(st.lists(st.integers(0, 255), max_size=12), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_bytes_read_the_same_in_pieces(tokens: list[int], drops: bool) -> None:
    detokenizer = Detokenizer(Bytes(drops))
    text = "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()
    assert text == join_text([bytes([token]) for token in tokens], drops)
    whole = bytes(tokens).decode(errors="replace")
    assert text == (whole[1:] if drops and tokens[:1] == [0x20] else whole)


@pytest.mark.parametrize(
    ("start", "expected"), [(Start.CONTINUES, " \n time"), (Start.ALONE, "\n time"), (Start.STRIPPED, "time")]
)
def test_blanks_at_the_beginning(start: Start, expected: str) -> None:
    detokenizer = Detokenizer(Bytes(True), start)
    assert "".join(map(detokenizer.push, b" \n time")) + detokenizer.flush() == expected


def test_a_character_comes_when_its_last_byte_does(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("€", special=False)
    assert len(tokens) == 3
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in tokens] == ["", "", "€"]


def test_bytes_that_never_become_a_character_are_given_up_at_once(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    first = tokenizer.encode("€", special=False)[0]
    assert [detokenizer.push(first) for _ in range(4)] == ["", HALF, HALF, HALF]


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(tokenizer.encode("€", special=False)[0]) == ""
    assert detokenizer.flush() == HALF
    assert detokenizer.flush() == ""
