"""`Retaken`: steps behind a checkpoint that were logged, and are taken again when a run goes on from it.

The log knows what they came to the first time. A run that comes to something else is not the run it takes itself for,
and is stopped before it learns from the step. The lines leave `metrics.jsonl`, which has every step once, for a file of
their own that stays until all of them were taken again, however often that is interrupted.

    metrics.jsonl    1 ... 12 │ 13 14 15 16 17      the checkpoint is step 12's
                              ╰──▶ retaken.jsonl ──▶ compared with steps 13 to 17, one by one

Ranks of another number, other threads and devices round otherwise, and what they round grows from step to step, where
the learning rate is high by orders of magnitude. It grows over steps, though, and what is wrong is there at once: so
what is allowed goes by the largest difference so far. Of a run that goes on from a later checkpoint than the one behind
which the lines were logged, the two files have it.

A log that has the checkpoint's own step otherwise than the checkpoint is another run's, and nothing is compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tandem.errors import CheckpointError
from tandem.files import write_whole
from tandem.parallel.world import World
from tandem.training.checkpoints.state import TrainState
from tandem.training.progress import StepReport
from tandem.training.watch.metrics import METRICS, as_line, read_metrics

RETAKEN: Final = "retaken.jsonl"
GROWTH: Final = 1000.0
"""Times the largest difference so far that the next one may be. Of eight sound runs of small models that went on with
another number of ranks, the one that needed most, 30, learnt at 0.02 in fp32: 1e-6 apart at step 31, 0.4 at step 53."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the log says of a step."""

    step: int
    consumed_samples: int
    lr: float
    loss: float
    grad_norm: float


class Retaken:
    """What is to come out again; the same on all ranks, so that they decide alike without a word.

    Args:
        logged: In the order of their steps.
        tolerance: Relative difference that rounding alone may make.
        drift: Largest difference of the steps between those and the checkpoint behind which they were logged.
        file: Where the lines are kept.
        done: Called when all were taken again.
    """

    def __init__(
        self,
        logged: Sequence[Logged] = (),
        tolerance: float = 0.0,
        drift: float = 0.0,
        file: Path = Path(RETAKEN),
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self._logged = logged
        self._left = {one.step: one for one in logged}
        self._tolerance, self._file, self._done = tolerance, file, done
        self._largest, self._compared = drift, 0

    @classmethod
    def of(
        cls, folder: Path, state: TrainState, world: World, tolerance: float, note: Callable[[str], None]
    ) -> Retaken:
        """What a run has logged behind the checkpoint it goes on from; before its log is cut there.

        Args:
            folder: Of the log, which is the leading rank's.
            state: The checkpoint's; of a run that begins nothing is compared.
            world: The ranks.
            tolerance: See above.
            note: Is told of a log that is another run's.

        Raises:
            DataError: A file is broken in a place other than its cut-off end.
        """
        file = folder / RETAKEN
        drift, told = world.decided(lambda: _kept(folder, state, note))
        done = (lambda: _emptied(file)) if world.leads else (lambda: None)
        return cls([Logged(**one) for one in told], tolerance, drift, file, done)

    def compare(self, new: Logged) -> None:
        """Hold a step against what was logged of it, before it changes anything.

        Raises:
            CheckpointError: It has come to something else.
        """
        old = self._left.get(new.step)
        if old is None:
            return
        if new.consumed_samples != old.consumed_samples:
            self._left.clear()  # the guard has left out others: this and what follows is another stretch
            return
        far = _farthest(new, old)
        if not far <= max(self._tolerance, GROWTH * self._largest):
            raise CheckpointError(
                f"step {new.step} is taken again, and comes to a loss of {new.loss:.6f} and a gradient norm of "
                f"{new.grad_norm:.6f}, where {old.loss:.6f} and {old.grad_norm:.6f} were logged: the data, the frozen "
                "weights, the code or the machine are not what they were; bring them back, or train anew with --fresh. "
                f"Who means the change removes {self._file}"
            )
        self._largest, self._compared = max(self._largest, far), self._compared + 1
        if new.lr != old.lr:
            self._left.clear()  # the run was made longer: what follows has learnt at another rate

    def after(self, step: int) -> str | None:
        """What there is to say once a step is made and logged; None of most."""
        if not self._logged or step < self._logged[-1].step:
            return None
        steps = f"steps {self._logged[0].step} to {self._logged[-1].step} were taken again"
        others = len(self._logged) - self._compared
        self._logged = ()
        self._done()
        if not others:
            are = "are" if self._largest <= self._tolerance else "drift by rounding from"
            return f"{steps}, and their losses {are} the ones that were logged (largest difference {self._largest:.2g})"
        return (
            f"{steps}, but {others} of them with other samples or after another learning rate than when they were "
            "logged; those were not compared"
        )


def _kept(folder: Path, state: TrainState, note: Callable[[str], None]) -> tuple[float, list[dict[str, Any]]]:
    """How far steps up to the checkpoint's were from lines in their own file, and the lines after; older ones stay."""
    file, log = folder / RETAKEN, _lines(folder / METRICS)
    before = _lines(file)
    found = {step: one for step, one in log.items() if step > state.step} | before
    left = [found[step] for step in sorted(found) if step > state.step] if state.step else []
    again = [(log[step], before[step]) for step in before if step <= state.step and step in log]
    if left and (why := _not_comparable(log.get(state.step), state, again)):
        note(f"{folder / METRICS}: {why}; steps {left[0].step} to {left[-1].step} are not compared")
        left = []
    if left or file.exists():
        write_whole(file, "".join(as_line(found[step]) for step in sorted(found) if left).encode())
    drift = max((_farthest(_logged(new), _logged(old)) for new, old in again), default=0.0)
    return drift, [asdict(_logged(report)) for report in left]


def _not_comparable(
    own: StepReport | None, state: TrainState, again: Sequence[tuple[StepReport, StepReport]]
) -> str | None:
    if own is None or own.loss != state.loss:
        return f"has step {state.step} otherwise than the checkpoint, so it is another run's or was cut"
    if any((new.lr, new.consumed_samples) != (old.lr, old.consumed_samples) for new, old in again):
        return f"steps before have learnt otherwise than those in {RETAKEN}"
    return None


def _logged(report: StepReport) -> Logged:
    return Logged(**{name: getattr(report, name) for name in Logged.__dataclass_fields__})


def _lines(path: Path) -> dict[int, StepReport]:
    return {report.step: report for report in read_metrics(path)} if path.exists() else {}


def _emptied(file: Path) -> None:
    with suppress(OSError):  # a full disk ends no run, and lines that stay only are compared once more
        write_whole(file, b"")


def _farthest(new: Logged, old: Logged) -> float:
    """The larger difference of the two numbers, relative where they are above 1; NaN where one of them is none."""
    pairs = ((new.loss, old.loss), (new.grad_norm, old.grad_norm))
    far = [abs(one - other) / max(1.0, abs(other)) for one, other in pairs]
    return max(far, key=lambda one: (math.isnan(one), one))
