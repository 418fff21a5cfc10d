"""What a run tells while it works, and to whom; the command line draws it, a test records it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One finished optimisation step: a line of `metrics.jsonl`."""

    step: int
    """Counted from 1."""
    loss: float
    """Mean over the step's valid targets, in nats."""
    lr: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Valid targets so far, over all steps."""
    tokens_per_s: float
    """In this step, every token of the batch counted."""
    consumed_samples: int
    elapsed: float
    """Seconds of training so far, over all processes that took part one after the other."""


class Progress(Protocol):
    """Listens to a run. Calls come in order and from one thread; none may raise."""

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """A stage begins; `steps` is None where it has no countable ones, `done` are those a resumed run has behind."""

    def step(self, report: StepReport) -> None:
        """One optimisation step of the stage is done."""

    def end(self, stage: str) -> None:
        """The stage is done and its output is on disk."""

    def reuse(self, stage: str) -> None:
        """The stage's output was there already, made from the same inputs."""

    def note(self, text: str) -> None:
        """Something the user should know, in one line."""


class Silence:
    """Tells nobody."""

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """Nothing."""

    def step(self, report: StepReport) -> None:
        """Nothing."""

    def end(self, stage: str) -> None:
        """Nothing."""

    def reuse(self, stage: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass
class Recording:
    """Remembers everything, for tests."""

    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """Keep the stage's name."""
        self.begun.append(stage)

    def step(self, report: StepReport) -> None:
        """Keep the report."""
        self.reports.append(report)

    def end(self, stage: str) -> None:
        """Keep the stage's name."""
        self.ended.append(stage)

    def reuse(self, stage: str) -> None:
        """Keep the stage's name."""
        self.reused.append(stage)

    def note(self, text: str) -> None:
        """Keep the text."""
        self.notes.append(text)
