"""`TrainState`: where a run is, in a few numbers; everything else is a function of them. And where it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tandem.training.checkpoints.proof import Proof

LATEST: Final = "latest_checkpointed_iteration.txt"
STATE: Final = "state.json"


@dataclass(frozen=True, kw_only=True)
class Lengthening:
    """A run was given more steps than it had; the learning rate follows another schedule from then on."""

    after: int
    """The last step under the schedule before."""
    before: int
    """Steps the run had."""
    steps: int
    """Steps it has now."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Where a run is."""

    step: int = 0
    consumed_samples: int = 0
    """The position in the data; the only one there is."""
    tokens: int = 0
    """Valid targets so far."""
    elapsed: float = 0.0
    """Seconds of training so far."""
    loss: float | None = None
    """Of the last step."""
    losses: list[float] = field(default_factory=list)
    """Of the steps of late, oldest first, by which the guard judges the next one."""
    grad_norms: list[float] = field(default_factory=list)
    """The same of the gradient's norms, before clipping."""
    lengthened: list[Lengthening] = field(default_factory=list)
    """How often the run was made longer, and when."""
    proof: Proof | None = None
    """Only in checkpoints."""
