"""`.json` files, read value by value: an array is never held whole.

What people call `.json` is one of: an array of rows; an object with rows under one key (`{"data": [...]}`), which is
held whole; one row; or rows one after the other, as in JSON Lines, also when they are spread over lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tandem.errors import DataError, printable
from tandem.training.data.readers.blocks import NULL, Sized, readable

CHUNK = 1 << 20
BLANK = re.compile(r"\s*")
ROW_KEYS = {"text", "messages", "conversations", "instruction", "chat"}
"""An object with one of these is a row itself."""


def read_json(path: Path) -> Iterator[Sized]:
    """The rows of a `.json` file, in order.

    Raises:
        DataError: It is no JSON from some place on, named by its character; rows before it have been given out.
    """
    with readable(path, UnicodeDecodeError), path.open(encoding="utf-8-sig") as file:
        for row, size in _Values(path, file).rows():
            yield NULL if row is None else row, size


class _Values:
    """A buffer over the file, with the place of the next value in it."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._decoder = json.JSONDecoder()
        self._text, self._place, self._passed = "", 0, 0

    def rows(self) -> Iterator[Sized]:
        if self._peek() == "[":
            self._place += 1
            yield from self._elements()
            return
        first = self._value()
        if self._peek():
            yield first
            while self._peek():
                yield self._value()
        else:
            yield from self._of_one(*first)

    def _elements(self) -> Iterator[Sized]:
        while (sign := self._peek()) != "]":
            if not sign:
                raise self._broken("ends within its array")
            yield self._value()
            if (sign := self._peek()) not in (",", "]"):
                raise self._broken("has neither comma nor end after a row")
            self._place += sign == ","
        self._place += 1
        if self._peek():
            raise self._broken("goes on behind the end of its array")

    def _of_one(self, value: Any, size: int) -> Iterator[Sized]:
        if not isinstance(value, dict) or ROW_KEYS & value.keys():
            yield value, size
            return
        lists = [
            key for key, rows in value.items() if isinstance(rows, list) and all(isinstance(r, dict) for r in rows)
        ]
        if len(lists) != 1:
            keys = printable(", ".join(value))[:200] or "none"
            raise DataError(
                f"{self._path}: is one object with keys {keys}, and not one of them alone holds rows; write an array "
                "of rows"
            )
        rows = value[lists[0]]
        yield from ((row, size // max(1, len(rows))) for row in rows)

    def _value(self) -> Sized:
        """The next value; the buffer grows until it is whole."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if not self._grow():
                    raise self._broken(error.msg) from None
                continue
            except RecursionError:
                raise self._broken("nests too deep") from None
            except ValueError as error:  # a number of more digits than Python reads
                raise self._broken(str(error)) from None
            # A number at the end of the buffer may go on behind it.
            if end < len(self._text) or not self._grow():
                size, self._place = end - self._place, end
                return value, size

    def _peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            match = BLANK.match(self._text, self._place)
            assert match is not None
            self._place = match.end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._grow():
                return ""

    def _grow(self) -> bool:
        # At least as much again as is held, so that a value of many chunks is not parsed once for each.
        more = self._file.read(max(CHUNK, len(self._text) - self._place))
        self._passed += self._place
        self._text, self._place = self._text[self._place :] + more, 0
        return bool(more)

    def _broken(self, reason: str) -> DataError:
        place = self._passed + self._place
        return DataError(f"{self._path}: is broken at character {place} ({reason}); write the file again")
