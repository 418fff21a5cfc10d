"""`metrics.jsonl`: one line for each optimisation step, none twice, however often the run was stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType

from pydantic import TypeAdapter, ValidationError

from tandem.errors import DataError
from tandem.files import write_whole
from tandem.training.progress import StepReport
from tandem.training.watch.growing import GrowingFile

METRICS = "metrics.jsonl"


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Appends reports to a file.

    Args:
        path: Created where missing.
        step: The step the run continues from; lines after it are of a stretch that will be trained again, and are cut.
        note: Is told when the file cannot be written.

    Raises:
        DataError: The file is broken in a place other than its cut-off end.
    """

    def __init__(self, path: Path, step: int, note: Callable[[str], None] = lambda text: None) -> None:
        there = read_metrics(path) if path.exists() else []
        self._session = max((report.session for report in there), default=0) + 1
        self._path, self._note = path, note
        self._file = self._begin(there, step)

    def go_back(self, step: int) -> None:
        """Cut the lines after a step, which will be trained again."""
        self._file.close()
        self._file = self._begin(read_metrics(self._path), step)

    def _begin(self, there: Sequence[StepReport], step: int) -> GrowingFile:
        write_whole(self._path, "".join(as_line(report) for report in there if report.step <= step).encode())
        return GrowingFile(self._path, self._note)

    def append(self, report: StepReport) -> None:
        """Write one line."""
        self._file.append(as_line(replace(report, session=self._session)).encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[StepReport]:
    """All whole lines of a metrics file; a last line without its end was cut off by a kill and is left out.

    Raises:
        DataError: A line is broken.
    """
    read = TypeAdapter(StepReport).validate_json
    reports = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            reports.append(read(line))
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise DataError(f"{path}: line {number} is no step report ({what}); remove that line") from None
    return reports


def as_line(report: StepReport) -> str:
    """One line of a metrics file."""
    return json.dumps(asdict(report)) + "\n"
