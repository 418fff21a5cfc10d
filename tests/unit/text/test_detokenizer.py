"""Incremental text equals text at once, and never shows half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.text.detokenizer import HALF, Detokenizer
from tandem.text.tokenizer import Tokenizer


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


def test_a_character_comes_when_its_last_byte_does(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("€", special=False)
    assert len(tokens) == 3
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in tokens] == ["", "", "€"]


def test_bytes_that_never_become_a_character_are_given_up(tokenizer: Tokenizer) -> None:
    """Else every further token would decode all of them again."""
    detokenizer = Detokenizer(tokenizer)
    first = tokenizer.encode("€", special=False)[0]
    text = "".join(detokenizer.push(first) for _ in range(40))
    assert text.count(HALF) >= 32


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(tokenizer.encode("€", special=False)[0]) == ""
    assert detokenizer.flush() == HALF
    assert detokenizer.flush() == ""
