"""Byte tokens and their ranks, encoded by the `tiktoken` library: `qwen.tiktoken` and GLM-4's `tokenizer.model`.

    IQ== 0          base64 of the token's bytes, then its rank, which is its id and says how early it is merged
    Ig== 1

The file has neither the expression that splits a text into words nor the special tokens; those are each family's.

Source: QwenLM/Qwen, `tokenization_note.md`; the tokenizers of Qwen-7B and GLM-4-9B.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.errors import ModelFolderError, RequestError
from tandem.files import read_bytes
from tandem.text.backend import Span
from tandem.text.library import mapped, refused, said

if TYPE_CHECKING:
    import tiktoken

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_WORDS, GLM4_WORDS = _WORDS.replace("DIGITS", r"\p{N}"), _WORDS.replace("DIGITS", r"\p{N}{1,3}")
"""How a text is split before merging: they differ in how many digits may be one token."""

QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
GLM4_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
"""Special tokens in the order of their ids, which go on from the last rank."""

LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*")
LONGEST_LINE = 4096
"""Bytes."""
LAST_RANK = 2**32 - 2
"""The library counts in 32 bits and keeps the highest number for itself."""
MOST_BLANKS = 999_998
"""In a row, line ends aside: with more the library's expressions give up, and so does the family's own tokenizer."""


@dataclass(frozen=True, kw_only=True)
class RankRules:
    """What the file does not say."""

    words: str
    """Expression that splits a text into words."""
    tokens: tuple[str, ...] = ()
    """Special tokens, whose ids go on from the last rank."""
    declared: tuple[tuple[str, int], ...] = ()
    """Special tokens with their ids, instead of `tokens`."""
    found_in_text: bool
    """Whether the spelling of a special token in a text is that token."""
    first: tuple[str, ...] = ()
    """Tokens put before a text."""
    composed: bool = False
    """Whether a text is brought into Unicode's composed form (NFC) first."""


class RankFile:
    """An opened rank file.

    Args:
        path: The file.
        rules: What it does not say.

    Raises:
        ModelFolderError: The file cannot be read or is no rank file.
    """

    drops_first_space = False

    def __init__(self, path: Path, rules: RankRules) -> None:
        self.path = path
        self._ranks = read_ranks(path)
        after = max(self._ranks.values()) + 1
        self._specials = dict(rules.declared) or {token: after + at for at, token in enumerate(rules.tokens)}
        self._bytes = {rank: token for token, rank in self._ranks.items()}
        self._bytes |= {number: token.encode() for token, number in self._specials.items()}
        self.vocab_size = max(self._bytes) + 1
        self._special_ids = set(self._specials.values())
        self._allowed = set(self._specials) if rules.found_in_text else set()
        self._first = [self._specials[token] for token in rules.first if token in self._specials]
        self._rules = rules

    def id_of(self, token: str) -> int | None:
        """The id of a special token, or of a text that is one token."""
        return self._specials.get(token, self._ranks.get(token.encode()))

    def is_special(self, token: int) -> bool:
        """Whether the token is one of the family's special ones."""
        return token in self._special_ids

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token adds to a text; none for ids that are no token."""
        return self._bytes.get(token, b"")

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of `text`."""
        ids = self._encode(text, self._allowed)
        return [*self._first, *ids] if special else ids

    def encode_many(self, texts: list[str], *, special: bool) -> list[list[int]]:
        """Ids of several texts."""
        return [self.encode(text, special=special) for text in texts]

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text`, with the spelling of special tokens as text."""
        return self._encode(text, set())

    def encode_with_offsets(self, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
        """Ids, and the characters each stands for, found by counting bytes.

        Characters that composing makes one share a span.
        """
        ids = self.encode(text, special=False)
        letters = self._letters(text)
        spans, at = [], 0
        for size in (len(self._bytes[token]) for token in ids):
            spans.append((letters[at][0], letters[at + size - 1][1]))
            at += size
        first = self._first if special else []
        return [*first, *ids], [*([(0, 0)] * len(first)), *spans]

    def _encode(self, text: str, allowed: set[str]) -> list[int]:
        # Not `encode_ordinary`, which panics where this says what is wrong.
        with mapped(_unsplittable):
            return self._encoding.encode(self._normal(text), allowed_special=allowed, disallowed_special=())

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        # Loaded here and not above: most folders need no tiktoken.
        import tiktoken

        return tiktoken.Encoding(
            "rank file", pat_str=self._rules.words, mergeable_ranks=self._ranks, special_tokens=self._specials
        )

    def _normal(self, text: str) -> str:
        return _nfc(text) if self._rules.composed else text

    def _letters(self, text: str) -> list[Span]:
        """For each byte of the text as it is encoded, the characters of `text` it belongs to."""
        pieces = _composed(text) if self._rules.composed else ((letter, at, at + 1) for at, letter in enumerate(text))
        return [(begin, end) for piece, begin, end in pieces for _ in piece.encode()]


def is_rank_file(path: Path) -> bool:
    """Whether a file begins like one; a SentencePiece model, which may have the same name, does not.

    Raises:
        ModelFolderError: It cannot be read.
    """
    line, end, _ = read_bytes(path, ModelFolderError, LONGEST_LINE).partition(b"\n")
    return LINE.fullmatch(line + end) is not None


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a rank file.

    Raises:
        ModelFolderError: The file cannot be read, a line is not of the form, a byte has no token, or a rank is there
            twice or beyond what can be.
    """
    lines = (line.split() for line in read_bytes(path, ModelFolderError).splitlines() if line)
    try:
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise ModelFolderError(f"{path}: is no file of tokens and ranks ({said(error)}); copy the file again") from None
    if not all(0 <= rank <= LAST_RANK for rank in ranks.values()):
        raise ModelFolderError(f"{path}: has a rank that is not in 0..{LAST_RANK}; copy the file again")
    if len(set(ranks.values())) < len(ranks):
        raise ModelFolderError(f"{path}: has two tokens of one rank; copy the file again")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ModelFolderError(f"{path}: has no token for byte {missing[0]:#04x}; copy the file again")
    return ranks


def _unsplittable(reason: str) -> RequestError:
    return RequestError(
        f"this model splits texts with at most {MOST_BLANKS} blanks in a row; shorten them"
        if "stack" in reason
        else str(refused(reason))
    )


def _composed(text: str) -> Iterator[tuple[str, int, int]]:
    """What composing makes of each stretch of `text` that does not change with what follows, and its characters."""
    begin = 0
    for at in range(1, len(text) + 1):
        if at == len(text) or _stands_alone(text, begin, at):
            yield _nfc(text[begin:at]), begin, at
            begin = at


def _stands_alone(text: str, begin: int, at: int) -> bool:
    """Whether the letter at `at` begins anew: an accent goes with the letter before it, and so do some of Hangul.

    It looks at the stretch from `begin` once or, where such a letter goes with it, at most three times: what becomes
    one letter is of four at most.
    """
    letter = text[at]
    if letter.isascii():
        return True
    if _accents().match(letter):
        return False
    before = _nfc(text[begin:at])[-1]
    return unicodedata.normalize("NFC", before + letter) == before + unicodedata.normalize("NFC", letter)


def _nfc(text: str) -> str:
    """The composed form, in time that is not quadratic in the accents on one letter.

    Python sorts these one by one; here they are sorted already.
    """
    return unicodedata.normalize("NFC", text if text.isascii() else _accents().sub(_sorted, text))


def _sorted(accents: re.Match[str]) -> str:
    single = (letter for accent in accents[0] for letter in unicodedata.normalize("NFD", accent))
    return "".join(sorted(single, key=unicodedata.combining))


@cache
def _accents() -> re.Pattern[str]:
    """Stretches of characters that combine with the letter before them; all are in the first two planes."""
    letters = (chr(code) for code in range(0x20000))
    joining = [letter for letter in letters if unicodedata.combining(unicodedata.normalize("NFD", letter)[0])]
    return re.compile(f"[{''.join(map(re.escape, joining))}]+")
