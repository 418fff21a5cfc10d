"""Shows a training run: a live bar in a terminal, plain lines everywhere else. `NO_COLOR` is honoured by rich.

A terminal that is closed, a pipe that nobody reads and a log on a full disk end no run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from tandem.training.progress import Progress, StepReport

PLAIN_EVERY = 5.0
"""Seconds between two plain lines of steps."""


@contextmanager
def show_training(console: Console) -> Iterator[Progress]:
    """What a run should tell its progress to, for as long as the block lasts."""
    console.file = cast(IO[str], Unfailing(console.file))
    if not console.is_terminal:
        yield PlainLines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with RichProgress(*columns, console=console) as bar:
        yield LiveBar(bar)


class Unfailing:
    """A file for people to read: what cannot be written is left out."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write, or not."""
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Have what was written reach its reader, or not."""
        with suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        """Whether it is a terminal, its encoding, and the like."""
        return getattr(self._file, name)


class LiveBar:
    """One bar for each stage: step, loss, tokens per second, MFU, time left.

    Args:
        bar: Running; needs the task field `numbers`.
    """

    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._task = TaskID(0)

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """A new bar below the others."""
        if done:
            self.note(f"{stage}: goes on after step {done}")
        self._task = self._bar.add_task(stage, total=steps, completed=done, numbers="")

    def step(self, report: StepReport) -> None:
        """The bar grows."""
        self._bar.update(self._task, completed=report.step, numbers=_numbers(report))

    def advance(self, done: int, numbers: str) -> None:
        """The bar grows."""
        self._bar.update(self._task, completed=done, numbers=numbers)

    def end(self, stage: str) -> None:
        """The bar is full."""
        task = self._bar.tasks[self._task]
        total = 1 if task.total is None else task.total
        self._bar.update(self._task, total=total, completed=total)

    def reuse(self, stage: str) -> None:
        """A line instead of a bar."""
        self._bar.console.print(f"{stage}: there already, used again", highlight=False)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bar.console.print(text, style="yellow", markup=False)


class PlainLines:
    """One line for each event, and for steps one every few seconds.

    Args:
        console: Receives the lines.
        clock: Seconds; a fake one in tests.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._said = clock()
        self._steps: int | None = None

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """The stage, and where it goes on from."""
        self._steps, self._said = steps, self._clock()
        self._print(f"{stage}: goes on after step {done}" if done else f"{stage}: begins")

    def step(self, report: StepReport) -> None:
        """A line, if the last one is long enough ago or this is the last step."""
        if report.step == self._steps or self._clock() - self._said >= PLAIN_EVERY:
            self._said = self._clock()
            self._print(f"step {report.step}/{self._steps}  {_numbers(report)}")

    def advance(self, done: int, numbers: str) -> None:
        """A line, if the last one is long enough ago."""
        if self._clock() - self._said >= PLAIN_EVERY:
            self._said = self._clock()
            self._print(f"{done}/{self._steps} {numbers}")

    def end(self, stage: str) -> None:
        """The stage."""
        self._print(f"{stage}: done")

    def reuse(self, stage: str) -> None:
        """The stage."""
        self._print(f"{stage}: there already, used again")

    def note(self, text: str) -> None:
        """The text."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _numbers(report: StepReport) -> str:
    mfu = "" if report.mfu is None else f"  MFU {report.mfu:.1%}"
    return f"loss {report.loss:.3f}  {report.tokens_per_s:,.0f} tokens/s{mfu}"
