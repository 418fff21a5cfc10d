"""Rows that are not trained on: each with its file, its place there, the reason, and the row itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from tandem.errors import DataError
from tandem.training.data.encoding import Skipped

NUMBER = re.compile(r"\d+(\.\d+)?")


class Reasons:
    """Why rows are skipped, alike ones counted together."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, Skipped] = {}

    @property
    def count(self) -> int:
        """Of all rows."""
        return self._counts.total()

    def add(self, row: Skipped) -> None:
        """Count one more."""
        kind = _kind(row.reason)
        self._examples.setdefault(kind, row)
        self._counts[kind] += 1

    def text(self, most: int = 3) -> str:
        """The most frequent reasons, each with how often, and where it was met first."""
        return "; ".join(
            f"{count} times: {first.reason} ({first.file}, row {first.row})"
            for kind, count in self._counts.most_common(most)
            for first in (self._examples[kind],)
        )


class SkippedRows(AbstractContextManager["SkippedRows"]):
    """Counts rows and writes them to a JSON Lines file, which is there only if there are some.

    Args:
        path: Of the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.reasons = Reasons()
        self._path = path
        self._file: TextIO | None = None

    def add(self, rows: Iterable[Skipped]) -> None:
        """Count and write some rows."""
        for row in rows:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8")
            # ASCII: a row may hold half a surrogate pair, which is why it is here.
            self._file.write(json.dumps(vars(row), default=str) + "\n")
            self.reasons.add(row)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def count_skipped(path: Path) -> dict[str, int]:
    """How many rows a side file holds for each kind of reason, the most frequent first; in a kind, numbers are N.

    Raises:
        DataError: It is no side file.
    """
    try:
        with path.open(encoding="utf-8") as file:
            kinds = Counter(_kind(json.loads(line)["reason"]) for line in file)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: holds a line that is no skipped row ({error!r}); prepare the data again") from None
    return dict(kinds.most_common())


def _kind(reason: str) -> str:
    return NUMBER.sub("N", reason)
