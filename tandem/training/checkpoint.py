"""Checkpoints: all that a run needs to go on exactly where it was, whole and proven, or refused.

    <folder>/latest_checkpointed_iteration.txt    the step to go on from; written last
    <folder>/iter_0000200/model.safetensors       parameters
    <folder>/iter_0000200/optimizer.safetensors   AdamW's state, by parameter name
    <folder>/iter_0000200/state.json              TrainState, the run's inputs, SHA-256 of the two files and of itself

Folder and file names are Megatron's, so that its users find their way; the contents are not. A damaged checkpoint is
an error and never a reason to take an older one silently: that would hide a failing disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW

from tandem.errors import CheckpointError
from tandem.files import json_bytes, read_json_object, whole_folder, write_whole
from tandem.model.decoder import Decoder
from tandem.training.inputs import Inputs, differences
from tandem.training.optimizer import optimizer_tensors, restore_optimizer

LATEST = "latest_checkpointed_iteration.txt"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


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


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: Where they are; created by the first one.
        inputs: All that the run's result depends on. A checkpoint made from others is refused.
        keep_last: Older checkpoints than this many are removed once a new one is named.
    """

    def __init__(self, folder: Path, inputs: Inputs, keep_last: int) -> None:
        self.folder = folder
        self._inputs = inputs
        self._keep_last = keep_last

    def save(self, model: Decoder, optimizer: AdamW, state: TrainState) -> None:
        """Write one checkpoint, name it as the latest, remove the oldest; a kill at any moment leaves a good one."""
        target = self._at(state.step)
        # There already only if a run was killed between writing it and naming it.
        _discard(target)
        try:
            with whole_folder(target) as part:
                save_file(_parameters(model), part / MODEL)
                save_file(optimizer_tensors(model, optimizer), part / OPTIMIZER)
                (part / STATE).write_bytes(json_bytes(self._state_fields(part, state)))
        except SafetensorError as error:
            raise CheckpointError(f"{target}: cannot be written ({error}); free disk space and go on") from None
        write_whole(self.folder / LATEST, f"{state.step}\n".encode())
        self._prune(state.step)

    def latest(self) -> int | None:
        """The step of the checkpoint to go on from, if there is one.

        Raises:
            CheckpointError: The file that names it holds no step.
        """
        path = self.folder / LATEST
        if not path.exists():
            # A kill between the first checkpoint and its naming; a folder that bears its name is whole.
            return max(self._steps(), default=None)
        content = path.read_bytes().strip()
        if not re.fullmatch(rb"[0-9]{1,15}", content):
            shown = content[:40].decode(errors="replace")
            raise CheckpointError(f"{path}: holds {shown!r} and no step; write one of {self._steps()} into it")
        return int(content)

    def load(self, model: Decoder, optimizer: AdamW, step: int) -> TrainState:
        """Put one checkpoint into the model and the optimizer.

        Raises:
            CheckpointError: It is missing, damaged, or made from other inputs.
        """
        folder = self._at(step)
        state = self._checked(folder, step)
        self._fill(model, self._tensors(folder / MODEL, step))
        restore_optimizer(model, optimizer, self._tensors(folder / OPTIMIZER, step), str(folder / OPTIMIZER))
        return state

    def _at(self, step: int) -> Path:
        return self.folder / f"iter_{step:07d}"

    def _steps(self) -> list[int]:
        names = (re.fullmatch(r"iter_([0-9]{7,15})", path.name) for path in self.folder.glob("iter_*"))
        return sorted(int(name[1]) for name in names if name)

    def _state_fields(self, part: Path, state: TrainState) -> dict[str, Any]:
        hashes = {name: _sha256_of(part / name) for name in (MODEL, OPTIMIZER)}
        surroundings = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
        fields = asdict(state) | {"inputs": self._inputs, "sha256": hashes} | surroundings
        return fields | {"own_sha256": _sha256_of_fields(fields)}

    def _checked(self, folder: Path, step: int) -> TrainState:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: is missing, though {LATEST} names it; {self._way_out(step)}")
        fields = read_json_object(folder / STATE, CheckpointError)
        if fields.pop("own_sha256", None) != _sha256_of_fields(fields):
            raise self._damaged(folder / STATE, step)
        if fields["step"] != step:
            raise CheckpointError(f"{folder}: holds step {fields['step']}; {self._way_out(step)}")
        if different := differences(fields["inputs"], self._inputs):
            raise CheckpointError(
                f"{folder}: belongs to a run with other inputs: {different}; go back to those, use another folder, or "
                "train anew with --fresh"
            )
        for name, expected in fields["sha256"].items():
            if not (folder / name).exists() or _sha256_of(folder / name) != expected:
                raise self._damaged(folder / name, step)
        return TrainState(**{name: fields[name] for name in TrainState.__dataclass_fields__})

    def _tensors(self, path: Path, step: int) -> dict[str, Tensor]:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); {self._way_out(step)}") from None

    def _fill(self, model: Decoder, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[name])

    def _damaged(self, path: Path, step: int) -> CheckpointError:
        return CheckpointError(f"{path}: is damaged, its SHA-256 is not the one written; {self._way_out(step)}")

    def _way_out(self, step: int) -> str:
        older = [known for known in self._steps() if known < step]
        if not older:
            return "train anew with --fresh"
        return f"to go on from step {older[-1]}, write {older[-1]} into {self.folder / LATEST}"

    def _prune(self, newest: int) -> None:
        # Later steps are of a stretch that was abandoned: the run went on from an earlier checkpoint.
        abandoned = [step for step in self._steps() if step > newest]
        kept = [step for step in self._steps() if step <= newest]
        for step in abandoned + kept[: -self._keep_last]:
            _discard(self._at(step))
        for leftover in self.folder.glob(".*.part"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _discard(folder: Path) -> None:
    """Remove a checkpoint; half a one never bears its name."""
    if folder.exists():
        part = folder.with_name(f".{folder.name}.{os.getpid()}.old.part")
        folder.rename(part)
        shutil.rmtree(part)


def _parameters(model: Decoder) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_fields(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
