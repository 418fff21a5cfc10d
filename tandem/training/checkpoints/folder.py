"""`CheckpointFolder`: what a folder of checkpoints says of itself. No torch, no ranks, and nothing is written.

What is in the folder: see store.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import CheckpointError
from tandem.files import read_bytes, read_json_object
from tandem.training.checkpoints.state import LATEST, STATE, TrainState
from tandem.training.inputs import Inputs

OWN = "own_sha256"
"""The field of a state that holds the hash of the others."""
SURROUNDINGS = ("ranks", "device", "threads", "torch")
"""Fields of a state that say by whom it was written."""
FIELDS = {*TrainState.__dataclass_fields__, "inputs", "sha256", *SURROUNDINGS}


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints at a place, of which there may be none."""

    path: Path

    def at(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.path / f"iter_{step:07d}"

    def steps(self) -> list[int]:
        """Of all checkpoints, in order."""
        names = (re.fullmatch(r"iter_([0-9]{7,15})", path.name) for path in self.path.glob("iter_*"))
        return sorted(int(name[1]) for name in names if name)

    def latest(self) -> int | None:
        """The step of the checkpoint to go on from, if there is one.

        Raises:
            CheckpointError: The file that names it holds no step.
        """
        path = self.path / LATEST
        if not path.exists():
            # A kill between the first checkpoint and its naming; a folder that bears its name is whole.
            return max(self.steps(), default=None)
        content = read_bytes(path, CheckpointError).strip()
        if not re.fullmatch(rb"[0-9]{1,15}", content):
            shown = content[:40].decode(errors="replace")
            raise CheckpointError(f"{path}: holds {shown!r} and no step; write one of {self.steps()} into it")
        return int(content)

    def fields(self, step: int) -> dict[str, Any]:
        """What a checkpoint's state says, once that is known to be whole.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        folder = self.at(step)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: is missing, though {LATEST} names it; {self.way_out(step)}")
        try:
            fields = read_json_object(folder / STATE, CheckpointError)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.way_out(step)}") from None
        if fields.pop(OWN, None) != sha256_of_fields(fields):
            raise self.damaged(folder / STATE, step)
        if fields.keys() != FIELDS:
            raise CheckpointError(
                f"{folder}: was written by another version of tandem; go on with that one, or train anew with --fresh"
            )
        if fields["step"] != step:
            raise CheckpointError(f"{folder}: holds step {fields['step']}; {self.way_out(step)}")
        return fields

    def digest(self, step: int) -> str:
        """SHA-256 over one checkpoint: over its state, which has those of its parts; raises as `fields`."""
        return sha256_of_fields(self.fields(step))

    def inputs_of(self, step: int) -> Inputs:
        """What one checkpoint was made from; raises as `fields`."""
        inputs: Inputs = self.fields(step)["inputs"]
        return inputs

    def damaged(self, path: Path, step: int) -> CheckpointError:
        """The error for a file of a checkpoint that is not what was written."""
        return CheckpointError(f"{path}: is damaged, its SHA-256 is not the one written; {self.way_out(step)}")

    def way_out(self, step: int) -> str:
        """What to do about a checkpoint that cannot be used, for a message."""
        older = [known for known in self.steps() if known < step]
        if not older:
            return "train anew with --fresh"
        return f"to go on from step {older[-1]}, write {older[-1]} into {self.path / LATEST}"


def sha256_of_fields(fields: dict[str, Any]) -> str:
    """SHA-256 over the fields of a state."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
