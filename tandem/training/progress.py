"""What a run tells while it works, and to whom; the command line draws it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic import ConfigDict


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One finished optimisation step: a line of `metrics.jsonl`."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
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
    seconds: float = 0.0
    """Of this step."""
    tokens_per_s_device: float = 0.0
    """The documents' tokens/s/p: GBS x SEQ_LEN / (cards x milliseconds of the iteration) x 1000."""
    real_tokens_per_s: float = 0.0
    """In this step, without padding."""
    learnt_tokens_per_s: float = 0.0
    """In this step, only targets that count for the loss."""
    mfu: float | None = None
    """Share of the devices' peak that the model's own operations made up; see `catalogue/operations.py`."""
    memory_peak: int | None = None
    """Most bytes in use so far, of the device that reports; on a CPU, of its process."""
    balance: float | None = None
    """The loss that evens a mixture's experts, with its coefficient; no part of `loss`. None where there is none."""
    load_max: float | None = None
    """Tokens of a mixture's most loaded expert over its layer's mean, in the layer where that is most."""
    skipped: int = 0
    """Batches that the guard has left out so far."""
    session: int = 1
    """Which of the processes that took part one after the other, counted from 1; stamped by `MetricsLog`."""


class StepLog(Protocol):
    """Keeps what a run did."""

    def append(self, report: StepReport) -> None:
        """One step."""

    def go_back(self, step: int) -> None:
        """Forget what came after a step."""


class Progress(Protocol):
    """Listens to a run. Calls come in order and from one thread, but for notes on what is sent; none raises."""

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """A stage begins; `steps` is None where it has no countable ones, `done` are those a resumed run has behind."""

    def step(self, report: StepReport) -> None:
        """One optimisation step of the stage is done."""

    def advance(self, done: int, numbers: str) -> None:
        """Of a stage that does not train, `done` of its steps are done; `numbers` says what else there is to say."""

    def end(self, stage: str) -> None:
        """The stage is done and its output is on disk."""

    def reuse(self, stage: str) -> None:
        """The stage's output was there already, made from the same inputs."""

    def note(self, text: str) -> None:
        """Something the user should know, in a line or a few."""


class Silence:
    """Tells nobody."""

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """Nothing."""

    def step(self, report: StepReport) -> None:
        """Nothing."""

    def advance(self, done: int, numbers: str) -> None:
        """Nothing."""

    def end(self, stage: str) -> None:
        """Nothing."""

    def reuse(self, stage: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
