"""Files of lines: JSON Lines, and plain text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tandem.training.data.readers.blocks import Broken, Sized, readable

BOM = b"\xef\xbb\xbf"


def read_json_lines(path: Path) -> Iterator[Sized]:
    """The lines of a JSON Lines file as bytes, blank ones too: a row's position is that of its line.

    A line ends at a line feed alone; a string may hold U+2028 and other line ends that JSON Lines does not know.
    """
    with readable(path), path.open("rb") as file:
        for line in _without_mark(file):
            yield line, len(line)


def read_text(path: Path) -> Iterator[Sized]:
    """Documents of a plain text file: `{"text": ...}` for every stretch of lines without a blank one between.

    A book's paragraphs, an article list, one document per line with blank lines between: all come out as people write
    them. A file without blank lines is one document; a line each is what JSON Lines is for.
    """
    held: list[bytes] = []
    with readable(path), path.open("rb") as file:
        for line in _without_mark(file):
            if line.strip():
                held.append(line)
            elif held:
                yield _document(held)
                held = []
    if held:
        yield _document(held)


def _without_mark(file: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(file):
        yield line if number else line.removeprefix(BOM)


def _document(lines: list[bytes]) -> Sized:
    content = b"".join(lines)
    try:
        return {"text": content.decode().rstrip("\r\n")}, len(content)
    except UnicodeDecodeError as error:
        return Broken(content.decode(errors="backslashreplace"), f"is no UTF-8 ({error.reason})"), len(content)
