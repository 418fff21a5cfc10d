"""What every kind of tokenizer file can do, once opened: text to ids, and the bytes each id stands for.

Decoding is not a backend's affair. A backend says which bytes a token adds, and `text/detokenizer.py` makes characters
of them, at once or as they come: there is one place where half a character could escape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

Span = tuple[int, int]
"""Characters [begin, end) of a text."""


class Backend(Protocol):
    """One opened tokenizer. Nothing here changes it, and several threads may call it at once."""

    @property
    def path(self) -> Path:
        """The file it was opened from."""

    @property
    def vocab_size(self) -> int:
        """One above the highest id; a model's table may be larger, never smaller."""

    @property
    def drops_first_space(self) -> bool:
        """Whether the tokenizer puts a space before every text, which decoding takes away again."""

    def id_of(self, token: str) -> int | None:
        """The id of one token by its spelling, special tokens included."""

    def is_special(self, token: int) -> bool:
        """Whether the token steers the model rather than being text of an answer."""

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token adds to a text, its spelling for a special one; none for ids that are no token."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`, with the special tokens spelled in it where the family's own tokenizer knows them there.

        Args:
            text: Any text.
            special: Whether to add what the family puts around a prompt, such as a first `<s>`.
        """

    def encode_many(self, texts: list[str], *, special: bool) -> list[list[int]]:
        """Ids of several texts."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` and nothing around it; the spelling of a special token in it is text like any other."""

    def encode_with_offsets(self, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
        """Ids as `encode` gives them, and the characters of `text` each stands for.

        Each of several tokens that make up one character has that character's span. Tokens that are added around the
        text, and the space that is put before it, have an empty one.
        """
