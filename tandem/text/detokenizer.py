"""Token ids to text, all at once or as they come, never half a character.

Both ways are one: the bytes of the tokens, read as UTF-8, where bytes that are no character become U+FFFD. An
incremental reader holds back at most three bytes, and what it gave out never has to be taken back.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from enum import Enum, auto
from typing import Protocol

HALF = "�"
"""What bytes that are not a whole character are shown as."""


class Start(Enum):
    """What becomes of blanks at the beginning of a text."""

    CONTINUES = auto()
    """The text goes on with another one, so a space belongs to it."""
    ALONE = auto()
    """The text stands for itself, so a space that the tokenizer puts before every text is taken off."""
    STRIPPED = auto()
    """All blanks are taken off: the model writes them because its chat format begins an answer so."""


class Decodes(Protocol):
    """The part of a tokenizer that is needed here."""

    @property
    def drops_first_space(self) -> bool:
        """Whether a space at the very beginning of a text is the tokenizer's own and not shown."""

    def bytes_of(self, token: int) -> bytes:
        """The bytes `token` adds to a text; none for special tokens and for ids that are no token."""


class Detokenizer:
    """The text of one growing sequence of token ids.

    Args:
        tokenizer: Whose ids.
        start: What becomes of blanks at its beginning.
    """

    def __init__(self, tokenizer: Decodes, start: Start = Start.ALONE) -> None:
        self._tokenizer = tokenizer
        self._reader = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._start = start
        self._at_start = start is not Start.CONTINUES

    def push(self, token: int) -> str:
        """The new text that is certain once `token` is known; may be empty."""
        piece = self._tokenizer.bytes_of(token)
        return self._reader.decode(self._begun(piece) if self._at_start else piece)

    def _begun(self, piece: bytes) -> bytes:
        """What is left of a piece at the beginning."""
        if self._start is Start.STRIPPED:
            piece = piece.lstrip()
            self._at_start = not piece
            return piece
        self._at_start = not piece
        return without_first_space(piece, self._tokenizer.drops_first_space)

    def flush(self) -> str:
        """What is left when no token will follow: bytes that never became a character, shown as U+FFFD."""
        return self._reader.decode(b"", final=True)


def join_text(pieces: Iterable[bytes], drops_first_space: bool) -> str:
    """The text that `pieces` make up together."""
    return without_first_space(b"".join(pieces), drops_first_space).decode("utf-8", errors="replace")


def without_first_space(piece: bytes, drops_first_space: bool) -> bytes:
    """The beginning of a text, less the one space that the tokenizer put there."""
    return piece.removeprefix(b" ") if drops_first_space else piece
