"""`Guard`: is asked before every update whether it shall be made.

All ranks decide together without a word: what is judged, the loss and the norm of the gradient, was summed over all of
them and is the same everywhere, the history is part of the checkpoint, and the rest is a function of these. A rank
whose own loss is no number makes the sum none, and so the decision everybody's.

PaLM (Chowdhery et al. 2022, section 5.1) went back some 100 steps and left out 200 to 500 batches, those before and
during the spike; a rollback here leaves out all from the checkpoint to the spike, so that the position in the data
stays one integer that only grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tandem.curves.judge import GRADIENT_NORM, LOSS, Kind, Verdict, judge
from tandem.curves.trend import WINDOW
from tandem.errors import DivergenceError
from tandem.training.checkpoints.state import TrainState
from tandem.training.guard.journal import Action, Event, Journal, number
from tandem.training.settings.config import GuardConfig


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step's batch gave, before the update."""

    loss: float
    """Mean over the valid targets of all ranks, in nats."""
    grad_norm: float
    """Of the whole model, before clipping."""
    samples: int
    """In the batch, over all ranks."""


class Guard:
    """What the trainer asks.

    Args:
        config: What to do about what.
        journal: What was done so far; by default nothing, and kept in memory.
        note: Is told every decision, in one line.
    """

    def __init__(
        self,
        config: GuardConfig,
        journal: Journal | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._config = config
        self._journal = journal or Journal()
        self._note = note

    def resume(self, state: TrainState) -> TrainState:
        """A checkpoint's state, past the samples that are left out since the run went back to it."""
        return replace(state, consumed_samples=self._journal.resume(state.step, state.consumed_samples))

    def decide(self, state: TrainState, outcome: Outcome, checkpoint: Callable[[], int | None]) -> Action:
        """Judge a step by the ones before it; what is not fine is logged and told.

        Args:
            state: Before the step.
            outcome: Of the step.
            checkpoint: The step of the latest one; asked only when the run shall go back to it.

        Raises:
            DivergenceError: Training shall stop.
        """
        kind, what = _worst(state, outcome)
        if kind is Kind.FINE:
            return Action.UPDATE
        action, back_to = self._choose(state.step + 1, kind, checkpoint)
        event = Event(
            step=state.step + 1,
            position=state.consumed_samples,
            next_position=state.consumed_samples + outcome.samples,
            action=action,
            back_to=back_to,
            verdict=kind,
            loss=number(outcome.loss),
            grad_norm=number(outcome.grad_norm),
            why=f"step {state.step + 1}: {what}; {self._consequence(action, back_to, kind, state, outcome)}",
        )
        self._journal.append(event)
        if action is Action.STOP:
            raise DivergenceError(event.why)
        self._note(event.why)
        return action

    def _choose(self, step: int, kind: Kind, checkpoint: Callable[[], int | None]) -> tuple[Action, int | None]:
        """What to do, and the step to go back to."""
        wish, most = self._wish(kind), self._config.most
        if wish == "log":
            return Action.UPDATE, None
        if wish == "stop":
            return Action.STOP, None
        if wish == "rollback" and (back_to := checkpoint()) is not None:
            return (Action.ROLLBACK, back_to) if self._journal.rollbacks(back_to) < most else (Action.STOP, None)
        return (Action.SKIP if self._journal.skips(step) < most else Action.STOP), None

    def _wish(self, kind: Kind) -> str:
        return self._config.on_nan if kind is Kind.NOT_A_NUMBER else self._config.on_spike

    def _consequence(self, action: Action, back_to: int | None, kind: Kind, state: TrainState, outcome: Outcome) -> str:
        begin, end = state.consumed_samples, state.consumed_samples + outcome.samples - 1
        wish = self._wish(kind)
        if action is Action.UPDATE:
            return f"noted, and samples {begin} to {end} trained on"
        if action is Action.ROLLBACK:
            return f"back to the checkpoint of step {back_to}; what was trained on since, to sample {end}, is left out"
        if action is Action.SKIP:
            why = " (there is no checkpoint to go back to)" if wish == "rollback" else ""
            return f"no update, samples {begin} to {end} are left out{why}"
        place = f"training diverged at samples {begin} to {end}"
        cure = "lower the learning rate or lengthen the warm-up, and train anew"
        if wish == "stop":
            field = "on_nan" if kind is Kind.NOT_A_NUMBER else "on_spike"
            return f"{place}; {cure}, or go on from the last checkpoint with guard.{field}: skip or rollback"
        return f"{place}, after guard.most ({self._config.most}) times of {wish} without getting further; {cure}"


def remember(state: TrainState, outcome: Outcome) -> tuple[list[float], list[float]]:
    """Losses and norms of late with one more step's, for the next state."""
    return [*state.losses, outcome.loss][-WINDOW:], [*state.grad_norms, outcome.grad_norm][-WINDOW:]


def _worst(state: TrainState, outcome: Outcome) -> tuple[Kind, str]:
    """The worse of the two verdicts, and in words what was seen."""
    loss = judge(state.losses, outcome.loss, LOSS)
    norm = judge(state.grad_norms, outcome.grad_norm, GRADIENT_NORM)
    seen = f"loss {outcome.loss:.4g}{_against(loss)} with gradient norm {outcome.grad_norm:.4g}{_against(norm)}"
    kinds = {loss.kind, norm.kind}
    for kind in (Kind.NOT_A_NUMBER, Kind.SPIKE):
        if kind in kinds:
            return kind, f"{seen} is {'a spike' if kind is Kind.SPIKE else 'no number'}"
    return Kind.FINE, seen


def _against(verdict: Verdict) -> str:
    if verdict.kind is not Kind.SPIKE:
        return ""
    return f" ({verdict.expected:.4g} was expected, {verdict.limit:.4g} at most)"
