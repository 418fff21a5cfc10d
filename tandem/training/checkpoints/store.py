"""Checkpoints: all that a run needs to go on exactly where it was, whole and proven, or refused.

    <folder>/latest_checkpointed_iteration.txt       the step to go on from; written last
    <folder>/iter_0000200/rank_00000.safetensors     one part for each rank (shards.py): what is trained, AdamW's state
    <folder>/iter_0000200/state.json                 TrainState, the run's inputs, SHA-256 of all parts and of itself

Folder and file names are Megatron's, so that its users find their way; the contents are not. Any number of ranks can go
on from it. A damaged checkpoint is an error and never a reason to take an older one silently: that would hide a failing
disk.

Training goes on while a checkpoint is written, in a thread; one at a time.

    main thread    copy ──▶ steps … ──▶ wait for the last one ──▶ copy ──▶ …
    writer              └─▶ own part ─▶ all ranks' hashes ─▶ rank 0: state.json, rename, name it, prune
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tandem.errors import CheckpointError
from tandem.files import json_bytes, whole_folder, write_whole
from tandem.parallel.world import World
from tandem.training.checkpoints.folder import FIELDS, OWN, CheckpointFolder, sha256_of_fields
from tandem.training.checkpoints.leftovers import discard, sweep
from tandem.training.checkpoints.lengthening import lengthening
from tandem.training.checkpoints.proof import Proof
from tandem.training.checkpoints.shards import copied, read_shards, write_shard
from tandem.training.checkpoints.state import LATEST, STATE, Lengthening, TrainState
from tandem.training.inputs import Inputs, differences

WEIGHTS = "model."
"""How the names of parameters begin; the optimizer's begin otherwise."""


class CheckpointStore:
    """The checkpoints of one run; the ranks call its methods together.

    Args:
        folder: Where they are, for all ranks; created by the first one.
        inputs: All that the run's result depends on. A checkpoint made from others is refused.
        keep_last: Older checkpoints than this many are removed once a new one is named.
        world: The ranks.
        hosts_apart: Every host has a folder of its own, which holds its ranks' parts of a new checkpoint (the first
            host's the state, too); somebody else brings them together before one is loaded.
    """

    def __init__(
        self, folder: Path, inputs: Inputs, keep_last: int, world: World | None = None, *, hosts_apart: bool = False
    ) -> None:
        self.folder = CheckpointFolder(folder)
        self._inputs = inputs
        self._keep_last = keep_last
        self._world = world or World()
        self._keeps = self._world.leads or (hosts_apart and self._world.place.local_rank == 0)
        self._keeper = self._world.rank - self._world.place.local_rank if hosts_apart else 0
        self._talk = self._world.talk()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, tensors: Mapping[str, Tensor], state: TrainState) -> None:
        """Begin to write one checkpoint, once the one before is written; `wait` tells when it is there.

        A kill at any moment leaves a good one.

        Raises:
            CheckpointError: The one before could not be written.
        """
        self.wait()
        self._writing = self._writer.submit(self._write, copied(tensors), state)

    def wait(self) -> None:
        """Return when the checkpoint that is being written is named as the latest.

        Raises:
            CheckpointError: It could not be written.
            ProcessError: A rank is gone.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def latest(self) -> int | None:
        """The step of the checkpoint to go on from, if there is one, as the rank that leads sees it.

        Raises:
            CheckpointError: The file that names it holds no step.
        """
        return self._world.decided(self.folder.latest)

    def load_weights(self, weights: dict[str, Tensor], step: int) -> None:
        """Fill parameters alone from one checkpoint, which may be made from other inputs.

        Args:
            weights: `model.<parameter>` -> what is filled; all of them that the checkpoint has.
            step: Of the checkpoint.

        Raises:
            CheckpointError: It is missing, damaged, or of a model with other parameters.
        """
        self._check_parts(self.folder.fields(step)["sha256"], step)
        read_shards(weights, self.folder.at(step), WEIGHTS)

    def require_same_inputs(self, step: int) -> Lengthening | None:
        """Refuse a checkpoint made from other inputs than more steps; its tensors are not looked at.

        Returns:
            How the run is made longer from there, if it is.

        Raises:
            CheckpointError: It is, or it is missing or its state damaged.
        """
        return self._of_same_inputs(step)[1]

    def load(self, tensors: dict[str, Tensor], step: int) -> TrainState:
        """Fill tensors from one checkpoint.

        Raises:
            CheckpointError: It is missing, damaged, or made from other inputs.
        """
        state = self._checked(step)
        try:
            read_shards(tensors, self.folder.at(step))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.folder.way_out(step)}") from None
        return state

    def _write(self, tensors: Mapping[str, Tensor], state: TrainState) -> None:
        target = self.folder.at(state.step)
        if self._keeps:
            # There already only if a run was killed between writing it and naming it.
            discard(target)
        with whole_folder(target) if self._keeps else nullcontext() as own:
            part = Path(self._talk.gather(str(own or ""))[self._keeper])
            hashes = self._all_hashes(tensors, part)
            if self._world.leads:
                (part / STATE).write_bytes(json_bytes(self._state_fields(hashes, state)))
        if self._world.leads:
            write_whole(self.folder.path / LATEST, f"{state.step}\n".encode())
        if self._keeps:
            self._prune(state.step)
        self._talk.gather("")  # named, for everybody

    def _all_hashes(self, tensors: Mapping[str, Tensor], part: Path) -> dict[str, str]:
        """Write this rank's part; returns the hash of every rank's."""
        try:
            path = write_shard(tensors, part, self._world.rank)
            told = json.dumps({path.name: _sha256_of(path)})
        except CheckpointError as error:
            told = json.dumps({"": str(error)})
        hashes: dict[str, str] = {}
        for one in self._talk.gather(told):
            hashes |= json.loads(one)
        if "" in hashes:
            raise CheckpointError(hashes[""])
        return hashes

    def _state_fields(self, hashes: Mapping[str, str], state: TrainState) -> dict[str, Any]:
        surroundings = {
            "ranks": self._world.ranks,
            "device": self._world.device.type,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        fields = asdict(state) | {"inputs": self._inputs, "sha256": dict(hashes)} | surroundings
        assert fields.keys() == FIELDS
        return fields | {OWN: sha256_of_fields(fields)}

    def _of_same_inputs(self, step: int) -> tuple[dict[str, Any], Lengthening | None]:
        """What a checkpoint's state says, and how the run is made longer from there."""
        folder, fields = self.folder.at(step), self.folder.fields(step)
        longer = lengthening(fields["inputs"], self._inputs, step, folder)
        if longer is None and (different := differences(fields["inputs"], self._inputs)):
            raise CheckpointError(
                f"{folder}: belongs to a run with other inputs: {different}; go back to those, use another folder, or "
                "train anew with --fresh"
            )
        return fields, longer

    def _checked(self, step: int) -> TrainState:
        fields, longer = self._of_same_inputs(step)
        self._check_parts(fields["sha256"], step)
        return _state_of(fields, longer)

    def _check_parts(self, hashes: Mapping[str, str], step: int) -> None:
        """Each rank looks at some of the parts, and all hear what is wrong with any."""
        folder = self.folder.at(step)
        if surplus := sorted(path.name for path in folder.glob("*.safetensors") if path.name not in hashes):
            raise CheckpointError(f"{folder / surplus[0]}: is no part of this checkpoint; remove it")
        own = list(hashes)[self._world.rank :: self._world.ranks]
        bad = [name for name in own if not (folder / name).is_file() or _sha256_of(folder / name) != hashes[name]]
        if found := [name for name in self._talk.gather(bad[0] if bad else "") if name]:
            raise self.folder.damaged(folder / found[0], step)

    def _prune(self, newest: int) -> None:
        # Later steps are of a stretch that was abandoned: the run went on from an earlier checkpoint.
        abandoned = [step for step in self.folder.steps() if step > newest]
        kept = [step for step in self.folder.steps() if step <= newest]
        for step in abandoned + kept[: -self._keep_last]:
            discard(self.folder.at(step))
        sweep(self.folder.path)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_of(fields: Mapping[str, Any], longer: Lengthening | None) -> TrainState:
    known = {name: fields[name] for name in TrainState.__dataclass_fields__}
    known["proof"] = Proof(**known["proof"]) if known["proof"] else None
    known["lengthened"] = [*(Lengthening(**one) for one in known["lengthened"]), *([longer] if longer else [])]
    return TrainState(**known)
