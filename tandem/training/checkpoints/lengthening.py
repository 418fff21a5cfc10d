"""Runs that are made longer: what was trained is taken up where everything but the number of steps is as it was.

The order of the data is a function of the position, the learning rate one of the step: more steps need nothing but a
schedule that ends later. Of a run with a constant learning rate the result is that of one which was as long from the
beginning; of any other it is not, so what was done is kept with the run. Fewer steps are another run.

The warm-up may change with the length, as it does where it is a share of it, once it is over in either schedule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tandem.errors import CheckpointError
from tandem.training.checkpoints.state import Lengthening
from tandem.training.compute.schedule import Schedule
from tandem.training.inputs import Inputs, differences
from tandem.training.settings.config import StageConfig

LENGTH = ("steps", "warmup_steps", "decay_steps")
"""Of a stage's settings, what follows from how long it is."""
LENGTHENED = "lengthened"
"""Of what a result was made from: `Lengthening`s, where there were some."""


def but_for_length(inputs: Inputs) -> Inputs:
    """The inputs of all runs that differ in their length alone."""
    stage = {name: value for name, value in inputs.get("stage", {}).items() if name not in LENGTH}
    return {name: value for name, value in inputs.items() if name != LENGTHENED} | {"stage": stage}


def is_longer(made_from: Inputs, asked_for: Inputs) -> bool:
    """Whether nothing differs but that more steps are asked for."""
    if "stage" not in made_from or "stage" not in asked_for:
        return False
    more = asked_for["stage"]["steps"] > made_from["stage"]["steps"]
    return more and not differences(but_for_length(made_from), but_for_length(asked_for))


def lengthening(made_from: Inputs, asked_for: Inputs, step: int, at: Path) -> Lengthening | None:
    """What is done to a run that goes on after a step with more steps than it had; None where it has as many.

    Args:
        made_from: What its checkpoint was made from.
        asked_for: What it is to be made from now on.
        step: Of the checkpoint.
        at: Where that is, for the message.

    Raises:
        CheckpointError: The step is in the warm-up, which would have another length.
    """
    if not is_longer(made_from, asked_for):
        return None
    old, new = _stage(made_from), _stage(asked_for)
    if old["warmup_steps"] != new["warmup_steps"] and step < max(old["warmup_steps"], new["warmup_steps"]):
        raise CheckpointError(
            f"{at}: with {new['steps']} steps and not {old['steps']} the warm-up has {new['warmup_steps']} and not "
            f"{old['warmup_steps']}, and step {step} is in it; let it keep its length (warmup_steps; of a named model "
            "its share of the steps, length.warmup)"
        )
    return Lengthening(after=step, before=old["steps"], steps=new["steps"])


def in_words(longer: Lengthening, config: StageConfig) -> str:
    """What it means for the learning rate that a run is made longer to what `config` says."""
    lr = Schedule.of(config).at(longer.after + 1)
    return (
        f"made longer after step {longer.after}: {longer.steps} steps, not {longer.before}; the schedule "
        f"({config.schedule}) ends at step {longer.steps}, so the learning rate of step {longer.after + 1} is {lr:.4g}"
    )


def _stage(inputs: Inputs) -> dict[str, Any]:
    stage: dict[str, Any] = inputs["stage"]
    return stage
