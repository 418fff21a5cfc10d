"""Which characters of a text each SentencePiece piece stands for, read from the library's serialised answer.

The answer is a protocol buffer. Its two messages are read here directly, because the library's own readers differ from
version to version and the newest one needs another package.

Source: `sentencepiece.proto`: `SentencePieceText.pieces` is field 2; of a piece `id` is field 2, `begin` 4 and `end` 5,
these two in bytes of the text.
"""

from __future__ import annotations

from collections.abc import Iterator

from tandem.text.backend import Span

PIECES, ID, BEGIN, END = 2, 2, 4, 5


def read_pieces(answer: bytes, text: str) -> tuple[list[int], list[Span]]:
    """The ids in a `SentencePieceText`, and the characters [begin, end) of `text` that each covers.

    The library gives a character that is spelled in byte pieces to the last of them and nothing to the others; those
    come out empty here too.
    """
    character = _characters(text)
    ids, spans = [], []
    for number, message in _fields(answer):
        if number == PIECES:
            assert isinstance(message, bytes)
            piece = {number: value for number, value in _fields(message) if isinstance(value, int)}
            ids.append(piece.get(ID, 0))
            spans.append((character[piece.get(BEGIN, 0)], character[piece.get(END, 0)]))
    return ids, spans


def _characters(text: str) -> list[int]:
    """For each byte of the text, and its end, the number of characters that begin before it."""
    starts = []
    for at, letter in enumerate(text):
        starts += [at] * len(letter.encode())
    return [*starts, len(text)]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one message: numbers, and the bytes of everything else."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        if key & 7 == 0:
            value, at = _number(message, at)
            yield key >> 3, value
        else:
            size, at = _number(message, at) if key & 7 == 2 else (4 if key & 7 == 5 else 8, at)
            yield key >> 3, message[at : at + size]
            at += size


def _number(message: bytes, at: int) -> tuple[int, int]:
    """The base-128 number at `at`, lowest digits first, and where it ends."""
    value = shift = 0
    while message[at] >= 128:
        value |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | message[at] << shift, at + 1
