"""Blocks of rows: what is read at once, sent to a worker and tokenised together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import DataError

BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Broken:
    """A row that could not be read; the others of its file could."""

    content: str
    reason: str


NULL = Broken("null", "is null and no object with keys")
"""JSON's null where a row should be; a row that is None is a blank line, and nobody misses it."""


@dataclass(frozen=True)
class Block:
    """Some rows of one file, one after the other."""

    file: str
    """The file's name."""
    first: int
    """Position of the first row in its file, from 0; blank lines count."""
    rows: tuple[Any, ...]
    """Objects, `Broken` ones, or lines of JSON as bytes, which whoever takes the block parses."""
    size: int
    """Bytes of the file these rows took, for the progress bar."""


Sized = tuple[Any, int]
"""A row, and how many bytes of its file it took."""


def blocks(file: str, rows: Iterable[Sized]) -> Iterator[Block]:
    """Put rows together, about `BLOCK_BYTES` at a time."""
    first, held, size = 0, [], 0
    for row, taken in rows:
        held.append(row)
        size += taken
        if size >= BLOCK_BYTES or len(held) >= BLOCK_ROWS:
            yield Block(file, first, tuple(held), size)
            first, held, size = first + len(held), [], 0
    if held:
        yield Block(file, first, tuple(held), size)


@contextmanager
def readable(path: Path, *foreign: type[Exception]) -> Iterator[None]:
    """Name the file in whatever goes wrong while it is read.

    Raises:
        DataError: For an `OSError`, and for errors of the classes `foreign`.
    """
    expected: tuple[type[Exception], ...] = (OSError, *foreign)
    try:
        yield
    except expected as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); write or copy the file again") from None


Reader = Callable[[Path], Iterator[Sized]]
