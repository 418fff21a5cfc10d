"""Declared tokens: who declares what, and how they are cut out of a text."""

from __future__ import annotations

import time
from pathlib import Path

from tandem.text.special_tokens import Cutter, SpecialToken, declared_tokens, spelling


def cut(text: str, *tokens: SpecialToken) -> list[tuple[str, str | None]]:
    parts = list(Cutter(tokens).cut(text))
    assert "".join(text[part.begin : part.end] for part in parts) == text
    return [(text[part.begin : part.end], part.token.content if part.token else None) for part in parts]


def token(content: str, **flags: bool) -> SpecialToken:
    return SpecialToken(content=content, id=None, special=True, **flags)


def test_the_leftmost_then_the_longest() -> None:
    assert cut("a<x><x>y>b", token("<x>"), token("<x>y>")) == [
        ("a", None), ("<x>", "<x>"), ("<x>y>", "<x>y>"), ("b", None),
    ]  # fmt: skip
    assert cut("", token("<x>")) == []
    assert cut("a.b", token(".")) == [("a", None), (".", "."), ("b", None)]
    assert cut("plain") == [("plain", None)]


def test_white_space_that_a_token_takes_along() -> None:
    assert cut("a  <x> \n b", token("<x>", lstrip=True)) == [("a", None), ("  <x>", "<x>"), (" \n b", None)]
    assert cut("a  <x> \n b", token("<x>", rstrip=True)) == [("a  ", None), ("<x> \n ", "<x>"), ("b", None)]


def test_white_space_between_two_tokens_is_taken_once() -> None:
    both = token("<x>", lstrip=True, rstrip=True)
    assert cut("  <x> <x>\n", both) == [("  <x> ", "<x>"), ("<x>\n", "<x>")]
    assert cut("<y>  <x>", both, token("<y>")) == [("<y>", "<y>"), ("  <x>", "<x>")]


def test_much_white_space_is_cut_in_a_moment() -> None:
    text = " " * 100_000 + "a" + "\u2003\n" * 50_000
    began = time.monotonic()
    assert cut(text, token("<x>", lstrip=True, rstrip=True)) == [(text, None)]
    assert cut(text + "<x>", token("<x>", lstrip=True))[0] == (" " * 100_000 + "a", None)
    assert time.monotonic() - began < 2  # 2 ms on an idle machine


def test_single_words_stand_between_spaces() -> None:
    assert cut("a<s> <s> <s>b <s>", token("<s>", single_word=True)) == [
        ("a<s> ", None), ("<s>", "<s>"), (" <s>b ", None), ("<s>", "<s>"),
    ]  # fmt: skip


def test_each_token_is_declared_once_and_named_ones_are_special() -> None:
    listed = {"5": {"content": "<a>", "rstrip": True}, "6": {"content": "<b>", "special": True}}
    more = ["<c>", {"content": "<d>", "lstrip": True}]
    settings, named = {"added_tokens_decoder": listed}, {"bos_token": "<a>", "pad_token": None, "more": more}
    found = {one.content: one for one in declared_tokens(Path("here"), settings, {"<a>": 9, "<e>": 7}, named)}
    assert found == {
        "<a>": SpecialToken(content="<a>", id=5, special=True, rstrip=True),
        "<b>": SpecialToken(content="<b>", id=6, special=True),
        "<e>": SpecialToken(content="<e>", id=7, special=False),
        "<c>": SpecialToken(content="<c>", id=None, special=True),
        "<d>": SpecialToken(content="<d>", id=None, special=True, lstrip=True),
    }


def test_spelling_of_named_tokens() -> None:
    assert spelling("<s>") == spelling({"content": "<s>", "lstrip": False}) == "<s>"
