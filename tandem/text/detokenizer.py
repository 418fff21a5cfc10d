"""Token ids to text as they come, never half a character.

A token's text can depend on its neighbours (a byte of a longer character, a space that SentencePiece drops at the
start), so a short window of earlier tokens is decoded twice, with and without the new ones, and the difference is new.
"""

from __future__ import annotations

from typing import Protocol

HALF = "�"
"""How a decoder shows bytes that are not a whole character yet."""

PATIENCE = 16
"""Tokens after which bytes that still make no character are given up: no character takes so many."""


class Decodes(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """Text of `ids`."""


class Detokenizer:
    """The text of one growing sequence of token ids."""

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # ids[start:read] is the window whose text is out already; everything before `start` no longer matters.
        self._start = 0
        self._read = 0

    def push(self, token: int) -> str:
        """The new text that is certain once `token` is known; may be empty."""
        self._ids.append(token)
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        text = self._tokenizer.decode(self._ids[self._start :])
        waited = len(self._ids) - self._read
        if (text.endswith(HALF) and waited < PATIENCE) or len(text) <= len(known):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        """What is left when no token will follow: bytes that never became a character, shown as U+FFFD."""
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        text = self._tokenizer.decode(self._ids[self._start :])
        self._start = self._read = len(self._ids)
        return text[len(known) :]
