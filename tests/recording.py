"""Listeners to training runs: one that remembers everything, and one that ends the run as well."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from tandem.training.progress import StepReport


@dataclass
class Recording:
    """Stands in for the terminal."""

    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)
    advances: list[str] = field(default_factory=list)

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """Keep the stage's name."""
        self.begun.append(stage)

    def step(self, report: StepReport) -> None:
        """Keep the report."""
        self.reports.append(report)

    def advance(self, done: int, numbers: str) -> None:
        """Keep the numbers."""
        self.advances.append(numbers)

    def end(self, stage: str) -> None:
        """Keep the stage's name."""
        self.ended.append(stage)

    def reuse(self, stage: str) -> None:
        """Keep the stage's name."""
        self.reused.append(stage)

    def note(self, text: str) -> None:
        """Keep the text."""
        self.notes.append(text)


class StoppedError(Exception):
    """Raised in place of a kill where the point is the state on disk."""


def break_off() -> None:
    """End a run as a kill would."""
    raise StoppedError


def tell_to_stop() -> None:
    """End a run as a plain kill of its process does: after the step, with a checkpoint."""
    os.kill(os.getpid(), signal.SIGTERM)


class StoppingAt(Recording):
    """Ends the run once a step is logged; without a step it never does."""

    def __init__(self, step: int | None, end: Callable[[], None] = break_off) -> None:
        super().__init__()
        self._step, self._end = step, end

    def step(self, report: StepReport) -> None:
        """Keep the report, and no more after this step's."""
        super().step(report)
        if report.step == self._step:
            self._end()
