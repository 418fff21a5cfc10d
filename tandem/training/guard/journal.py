"""`guard.jsonl`: every decision of the guard, one line each; with a checkpoint it says where a run goes on.

A checkpoint cannot know that the run went back to it and left samples out. The journal does, so a run that is stopped
after a rollback and goes on from the same checkpoint leaves the same samples out, without falling into the hole again.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tandem.curves.judge import Kind
from tandem.errors import DataError
from tandem.files import write_whole


class Action(StrEnum):
    """What becomes of a step."""

    UPDATE = "update"
    """It is made."""
    SKIP = "skip"
    """Its batch is left out; the same step is tried with the next one."""
    ROLLBACK = "rollback"
    """The run goes back to a checkpoint, and leaves out all samples from there to the end of this batch."""
    STOP = "stop"
    """Training ends."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A step that was not as the ones before it: a line of `guard.jsonl`."""

    step: int
    """That was tried, from 1."""
    position: int
    """First sample of its batch."""
    next_position: int
    """First sample after it."""
    action: Action
    back_to: int | None = None
    """The checkpoint's step, of a rollback."""
    verdict: Kind
    loss: float | None
    """In nats; None where it is no number, as JSON has none such."""
    grad_norm: float | None
    why: str
    """For people."""


class Journal:
    """The events of a run; those of a stretch that is trained again are forgotten.

    Args:
        path: The file; None keeps them in memory only.
        writes: Whether this rank writes the file. All ranks read it, once, before the first step.

    Raises:
        DataError: The file is broken in a place other than its cut-off end.
    """

    def __init__(self, path: Path | None, *, writes: bool = True) -> None:
        self.events = read_events(path) if path is not None and path.exists() else []
        self._path = path if writes else None

    def append(self, event: Event) -> None:
        """Remember one more; it is on the disk when this returns."""
        self.events.append(event)
        self._write()

    def resume(self, step: int, position: int) -> int:
        """Where the data go on from a checkpoint, which was made at `position`; later events are forgotten."""
        left_out = [event.next_position for event in self.events if event.back_to == step]
        begin = max([position, *left_out])
        kept = [event for event in self.events if event.position < begin]
        if kept != self.events:
            self.events = kept
            self._write()
        return begin

    def skips(self, step: int) -> int:
        """How many batches in a row were left out before this try of the step."""
        count = 0
        for event in reversed(self.events):
            if event.action is not Action.SKIP or event.step != step:
                break
            count += 1
        return count

    def rollbacks(self, step: int) -> int:
        """How often the run went back to the checkpoint of this step."""
        return sum(event.back_to == step for event in self.events)

    def _write(self) -> None:
        # Whole each time: there are few lines, and a decision must not be lost or cut off.
        if self._path is not None:
            write_whole(self._path, "".join(_line(event) for event in self.events).encode())


def read_events(path: Path) -> list[Event]:
    """All whole lines of a `guard.jsonl`.

    Raises:
        DataError: A line is broken.
    """
    try:
        return [_event(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: holds a line that is no event of the guard ({error}); remove that line") from None


def number(value: float) -> float | None:
    """The value, if it is a number."""
    return value if math.isfinite(value) else None


def _event(fields: dict[str, Any]) -> Event:
    return Event(**fields | {"action": Action(fields["action"]), "verdict": Kind(fields["verdict"])})


def _line(event: Event) -> str:
    return json.dumps(asdict(event), allow_nan=False) + "\n"
