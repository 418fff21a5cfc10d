"""`metrics.jsonl`: one line for each optimisation step, none twice, however often the run was stopped and resumed."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO

from tandem.errors import DataError
from tandem.files import write_whole
from tandem.training.progress import StepReport


class MetricsLog(AbstractContextManager["MetricsLog"]):
    """Appends reports to a file.

    Args:
        path: Created where missing.
        step: The step the run continues from; lines after it are of a stretch that will be trained again, and are cut.

    Raises:
        DataError: The file is broken in a place other than its cut-off end.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [report for report in read_metrics(path) if report.step <= step] if path.exists() else []
        write_whole(path, "".join(_line(report) for report in kept).encode())
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def append(self, report: StepReport) -> None:
        """Write one line; it is in the file, if not yet on the disk, when this returns."""
        self._file.write(_line(report))
        self._file.flush()

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
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [StepReport(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: holds a line that is no step report ({error}); remove that line") from None


def _line(report: StepReport) -> str:
    return json.dumps(asdict(report)) + "\n"
