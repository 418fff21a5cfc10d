"""Whether what a stage has exported is what is asked for; what was trained otherwise is refused, never replaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tandem.errors import CheckpointError
from tandem.training.checkpoints.folder import CheckpointFolder
from tandem.training.checkpoints.lengthening import LENGTHENED, is_longer
from tandem.training.inputs import Inputs, differences


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What was trained before."""

    place: Path
    """For messages."""
    checkpoints: CheckpointFolder
    exported_from: Inputs | None
    """None where nothing is exported."""
    way_out: str
    """What to do where it is not what is asked for, for messages."""

    @property
    def made_from(self) -> Inputs | None:
        """The inputs of the export or, without one, of the latest checkpoint; None where there is neither."""
        step = None if self.exported_from is not None else self.checkpoints.latest()
        return self.exported_from if step is None else self.checkpoints.inputs_of(step)

    def is_it(self, asked_for: Inputs) -> bool:
        """Whether it is exported, with as many steps as are asked for.

        Raises:
            CheckpointError: It was made from other inputs, or has no checkpoint to be made longer from.
        """
        if self.exported_from is None:
            return False
        made_from = {name: value for name, value in self.exported_from.items() if name != LENGTHENED}
        if not is_longer(made_from, asked_for):
            self.require(made_from, asked_for)
            return True
        if self.checkpoints.latest() is None:
            raise CheckpointError(
                f"{self.checkpoints.path}: holds no checkpoint, and {self.place} is made longer than "
                f"{made_from['stage']['steps']} steps from its last one; {self.way_out}"
            )
        return False

    def require(self, made_from: Inputs, asked_for: Inputs) -> None:
        """Refuse what differs.

        Raises:
            CheckpointError: Something does.
        """
        if different := differences(made_from, asked_for):
            raise CheckpointError(f"{self.place}: was trained from other inputs: {different}; {self.way_out}")
