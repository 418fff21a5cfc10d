"""`guard.jsonl`: every decision of the guard, one line each; with a checkpoint it says where a run goes on.

A checkpoint cannot know that the run went back to it and left samples out. The journal does, so a run that is stopped
after a rollback and goes on from the same checkpoint leaves the same samples out, without falling into the hole again.

Two runs may have had one folder of logs, one after the other. What the other one left out is nothing to this one, so
each line says whose it is, and those of others are removed when a run goes on. The rank that leads reads the file and
tells the others, who may be on hosts that have none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from tandem.curves.judge import Kind
from tandem.errors import DataError
from tandem.files import write_whole
from tandem.parallel.world import World

GUARD: Final = "guard.jsonl"


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
    run: str = ""
    """Whose it is; said by its journal."""


class Journal:
    """The events of a run; those of a stretch that is trained again are forgotten.

    Args:
        events: So far.
        run: Whose they are.
        path: Where they are kept; None for memory alone.
    """

    def __init__(self, events: Sequence[Event] = (), run: str = "", path: Path | None = None) -> None:
        self.events = list(events)
        self._run, self._path = run, path

    @classmethod
    def of(cls, path: Path, run: str, world: World, note: Callable[[str], None]) -> Journal:
        """What a file has of a run; all ranks call this together.

        Args:
            path: The file, which the leading rank alone reads and writes.
            run: The same for all checkpoints that the run may go on from, and for no other run's.
            world: The ranks.
            note: Is told of lines of other runs, which are removed.

        Raises:
            DataError: The file is broken in a place other than its cut-off end.
        """
        told = world.decided(lambda: [asdict(event) for event in _own(path, run, note)])
        return cls([_event(fields) for fields in told], run, path if world.leads else None)

    def append(self, event: Event) -> None:
        """Remember one more; it is on the disk when this returns."""
        self.events.append(replace(event, run=self._run))
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
            write_events(self._path, self.events)


def read_events(path: Path) -> list[Event]:
    """All whole lines of a `guard.jsonl`.

    Raises:
        DataError: A line is broken.
    """
    try:
        return [_event(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: holds a line that is no event of the guard ({error}); remove that line") from None


def write_events(path: Path, events: Sequence[Event]) -> None:
    """Put events in place of what a `guard.jsonl` holds."""
    write_whole(path, "".join(json.dumps(asdict(event), allow_nan=False) + "\n" for event in events).encode())


def number(value: float) -> float | None:
    """The value, if it is a number."""
    return value if math.isfinite(value) else None


def _event(fields: dict[str, Any]) -> Event:
    return Event(**fields | {"action": Action(fields["action"]), "verdict": Kind(fields["verdict"])})


def _own(path: Path, run: str, note: Callable[[str], None]) -> list[Event]:
    """The events of a run; those of others leave the file."""
    events = read_events(path) if path.exists() else []
    own = [event for event in events if event.run == run]
    if len(own) < len(events):
        note(f"{path}: {len(events) - len(own)} of {len(events)} lines are another run's, and are removed")
        write_events(path, own)
    return own
