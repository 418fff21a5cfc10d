"""A made-up language: which ids a text has, and which bytes a token stands for.

A token's bytes are a word of several characters. The low four bits of its id say of what kind it is:

    0-11   a word and an ending
    12     a word and the first half of a two-byte character, which only kind 13 completes
    14     a word and the first half of a four-byte character, which only kind 15 completes

So text lags behind tokens as it does with real byte-level tokenizers. Text does not turn back into the ids that made
it, as it need not with real ones: who goes on from text instead of ids gets another answer.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

VOCABULARY: Final = 4096
END: Final = 2
"""Ends an answer."""
SPECIAL: Final = 16
"""Ids below have no text."""

KINDS: Final = 16
OPENING: Final = {12: 13, 14: 15}
"""Kinds that only another kind completes."""

SYLLABLES: Final = ("ka", "lo", "mi", "ru", "te", "sa", "no", "ve", "di", "pu", "ga", "he", "jo", "xi", "wa", "ze")
ENDINGS: Final = ("", ",", ".", "s", "n", "r", "!", "?", ";", "th", "ng", "l")
HALVES: Final = {12: b"\xc3", 13: b"\xb6", 14: b"\xf0\x9f", 15: b"\x99\x82"}


def spelled(token: int) -> bytes:
    """The bytes of a token."""
    if token < SPECIAL:
        return b""
    number, kind = divmod(token, KINDS)
    word = (SYLLABLES[number // 16 % 16] + SYLLABLES[number % 16]).encode()
    if kind in OPENING:
        return b" " + word + HALVES[kind]
    if kind in HALVES:
        return HALVES[kind] + word
    return b" " + word + ENDINGS[kind].encode()


def shown(token: int) -> str:
    """A token by itself, as log-probabilities show it."""
    return spelled(token).decode(errors="replace")


def tokenized(text: str) -> list[int]:
    """The ids of a text: one for up to six characters of it; none of them leaves a character open."""
    return [_plain(piece) for piece in re.findall(r"\s*\S{1,6}", text)]


def cached(prompt: Sequence[int]) -> int:
    """How many of a prompt's tokens every instance finds in its prefix cache; never all but one of them."""
    return sum(prompt) % max(1, len(prompt) - 1)


def templated(messages: Sequence[dict[str, Any]]) -> list[int]:
    """The ids of a conversation."""
    ids = [1]
    for message in messages:
        content = message["content"]
        text = content if isinstance(content, str) else "".join(part["text"] for part in content)
        ids += [3, *tokenized(message["role"]), *tokenized(text), 4]
    return [*ids, 3, *tokenized("assistant")]


def _plain(piece: str) -> int:
    number = int.from_bytes(blake2b(piece.encode(), digest_size=8).digest(), "little")
    return (1 + number % (VOCABULARY // KINDS - 1)) * KINDS + (number >> 32) % len(ENDINGS)


class Detokenizer:
    """Text of a sequence of tokens, as it becomes certain: a token that leaves a character open shows nothing yet."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, token: int) -> str:
        """What `token` adds; bytes without a beginning become replacement characters."""
        self._held += spelled(token)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = decoder.decode(self._held)
        if decoder.getstate()[0]:
            return ""
        self._held = b""
        return text


class Stops:
    """Cuts a text before the first stop string, and holds back what may yet become one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._kept = max((len(one) for one in strings), default=1) - 1
        self._text = ""
        self.hit = False

    def push(self, text: str, *, check: bool = True) -> str:
        """What is certain to be told; nothing is looked for before `min_tokens` are there."""
        self._text += text
        found = [at for at in (self._text.find(one) for one in self._strings) if at >= 0] if check else []
        self.hit = bool(found)
        cut = min(found) if found else max(len(self._text) - self._kept, 0)
        told, self._text = self._text[:cut], self._text[cut:]
        return told

    def rest(self) -> str:
        """What was held back, when the answer ends without a stop string."""
        text, self._text = ("" if self.hit else self._text), ""
        return text
