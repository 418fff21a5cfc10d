"""`logged`: what the process says that has the terminal, in the process-log folder, too.

The whole output of other ranks goes to such a file (`ranks.py`). The first one keeps the terminal and its bar; in its
file are what it notes, what Python writes to stderr, how it ended, and the stacks of all threads where native code
crashed. Lines that native code writes itself (gloo's, say) are in the terminal alone: to have them here, stderr would
have to be a pipe, and what is in a pipe is lost with the process that crashes.
"""

from __future__ import annotations

import faulthandler
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, Final, cast

from tandem.training.progress import Progress, StepReport

STDERR: Final = 2


def log_path(logs: Path, hosts: int, rank: int) -> Path:
    """Of one rank; named as the documents name it."""
    return logs / f"run_log-{hosts}-{rank}.txt"


@contextmanager
def logged(path: Path, progress: Progress) -> Iterator[Progress]:
    """Within the block, what is told to the yielded progress is written down, and what else this process says.

    Args:
        path: Appended to; its folder is created where missing.
        progress: Is told the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        log, before = _Log(file), faulthandler.is_enabled()
        faulthandler.enable(file)
        try:
            with redirect_stderr(cast(IO[str], _Both(sys.stderr, log))):
                yield _Noted(progress, log)
        except BaseException:
            log.write(traceback.format_exc())
            raise
        finally:
            faulthandler.enable(STDERR) if before else faulthandler.disable()


class _Log:
    """A file whose failure, as on a full disk, ends no run."""

    def __init__(self, file: RawIOBase) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._file.write(text.encode(errors="replace"))


class _Both:
    """Standard error and a log."""

    def __init__(self, stderr: IO[str], log: _Log) -> None:
        self._stderr, self._log = stderr, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return self._stderr.write(text)

    def __getattr__(self, name: str) -> Any:
        """Whether it is a terminal, its encoding, and the like."""
        return getattr(self._stderr, name)


class _Noted:
    """Writes down everything but single steps, which have logs of their own."""

    def __init__(self, progress: Progress, log: _Log) -> None:
        self._progress, self._log = progress, log

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        self._write(f"{stage}: goes on after step {done}" if done else f"{stage}: begins")
        self._progress.begin(stage, steps, done)

    def step(self, report: StepReport) -> None:
        self._progress.step(report)

    def advance(self, done: int, numbers: str) -> None:
        self._progress.advance(done, numbers)

    def end(self, stage: str) -> None:
        self._write(f"{stage}: done")
        self._progress.end(stage)

    def reuse(self, stage: str) -> None:
        self._write(f"{stage}: there already, used again")
        self._progress.reuse(stage)

    def note(self, text: str) -> None:
        self._write(text)
        self._progress.note(text)

    def _write(self, text: str) -> None:
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
