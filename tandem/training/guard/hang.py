"""`HangWatch`: a thread beside the training that notices when no step ends any more, says where, and ends the process.

    <folder>/rank_00000.stacks.txt    the stacks of all threads
    <folder>/rank_00000.hang.json     what `diagnosis.collect` reads of every rank

A step costs it one look at the clock. It looks on its own every few seconds; where another thread never lets go of the
interpreter, so that it cannot, `faulthandler` writes the stacks all the same, from C.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from tandem.files import write_whole
from tandem.training.guard.diagnosis import HUNG, Report, report_path, stacks_path
from tandem.training.guard.stacks import last_collective, main_place

OF_LATE = 32
"""Steps whose duration counts."""
LONGEST_LOOK = 5.0
"""Seconds between two looks, at most."""


class Unwatched(AbstractContextManager["Unwatched"]):
    """Watches nothing: a rank that is alone waits for nobody."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing."""

    def ended(self, step: int) -> None:
        """Nothing."""

    def allowing(self, seconds: float) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()


class HangWatch(AbstractContextManager["HangWatch"]):
    """Watches this process from `__enter__` to `__exit__`.

    Args:
        folder: The process-log folder, best one that all ranks share.
        rank: Which one this is.
        world: How many there are.
        floor: Seconds without a step before anything happens, at least; also for the first step.
        factor: So many times the longest step of late is waited, if that is more.
        grace: Seconds in which the other ranks may write their reports, before this process ends.
    """

    def __init__(
        self, folder: Path, rank: int, world: int, *, floor: float, factor: float = 10.0, grace: float = 8.0
    ) -> None:
        self._folder, self._rank, self._world = folder, rank, world
        self._floor, self._factor, self._grace = floor, factor, grace
        self._look = min(LONGEST_LOOK, floor / 10)
        self._seconds: deque[float] = deque(maxlen=OF_LATE)
        self._step = 0
        self._allowance = 0.0
        self._ended = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def __enter__(self) -> HangWatch:
        """Begin; reports of an earlier run of this rank are removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        report_path(self._folder, self._rank).unlink(missing_ok=True)
        self._stacks = stacks_path(self._folder, self._rank).open("w", encoding="utf-8")
        self._ended = time.monotonic()
        self._arm()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; nothing is left behind."""
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        stacks_path(self._folder, self._rank).unlink(missing_ok=True)

    def ended(self, step: int) -> None:
        """A step has ended, on all ranks or nearly so."""
        now = time.monotonic()
        self._seconds.append(now - self._ended)
        self._step, self._ended = step, now

    @contextmanager
    def allowing(self, seconds: float) -> Iterator[None]:
        """Within the block it waits so much longer; for what is no step, such as saving."""
        self._allowance += seconds
        try:
            yield
        finally:
            self._ended = time.monotonic()
            self._allowance -= seconds

    def limit(self) -> float:
        """Seconds without a step that are too many, as things are now."""
        return max(self._floor, self._factor * max(self._seconds, default=0.0)) + self._allowance

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self._look):
            now = time.monotonic()
            if now - before > 3 * self._look + 1.0:
                # The whole process stood still, as after Ctrl-Z; that is no fault of the step.
                self._ended += now - before
            before = now
            if now - self._ended > self.limit():
                self._report(now - self._ended)
            self._arm()

    def _arm(self) -> None:
        """Have the stacks written if this thread does not come here again in time."""
        faulthandler.dump_traceback_later(self.limit() + self._look, file=self._stacks)

    def _report(self, seconds: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        where = main_place()
        faulthandler.dump_traceback(file=self._stacks)
        report = Report(
            rank=self._rank, world=self._world, step=self._step + 1, seconds=seconds, collective=where.collective,
            module=where.module, line=where.line, last=None,
        )  # fmt: skip
        # Twice: a device that hangs may not answer the question for its last collective.
        self._write(report)
        self._write(replace(report, last=last_collective()))
        stacks = stacks_path(self._folder, self._rank)
        sys.stderr.write(f"{report}; the stacks of all threads are in {stacks}\n")
        sys.stderr.flush()
        self._wait_for_others()
        os._exit(HUNG)

    def _write(self, report: Report) -> None:
        write_whole(report_path(self._folder, self._rank), report.to_json())

    def _wait_for_others(self) -> None:
        """A rank that ends breaks the connections of the others, which would then tell of those and not of the hang."""
        end = time.monotonic() + self._grace
        paths = [report_path(self._folder, rank) for rank in range(self._world)]
        while time.monotonic() < end and not all(path.exists() for path in paths):
            time.sleep(min(0.1, self._look))
