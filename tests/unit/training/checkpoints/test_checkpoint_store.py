"""What a checkpoint's folder may hold, and what is refused with the way out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from tandem.errors import CheckpointError
from tandem.training.checkpoints import shards
from tandem.training.checkpoints.folder import sha256_of_fields
from tandem.training.checkpoints.shards import copied
from tandem.training.checkpoints.state import LATEST, TrainState
from tandem.training.checkpoints.store import CheckpointStore


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Two checkpoints, of steps 1 and 2."""
    store = CheckpointStore(tmp_path, {"seed": 1}, keep_last=2)
    for step in (1, 2):
        store.save({"model.weight": torch.full((3,), float(step))}, TrainState(step=step))
    store.wait()
    return store


def restated(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a state file as another version would have written it."""
    fields = json.loads(path.read_bytes())
    del fields["own_sha256"]
    change(fields)
    path.write_text(json.dumps(fields | {"own_sha256": sha256_of_fields(fields)}))


def _another_version(folder: Path) -> None:
    restated(folder / "state.json", lambda fields: fields.pop("grad_norms"))


def _surplus_part(folder: Path) -> None:
    (folder / "rank_00001.safetensors").write_bytes((folder / "rank_00000.safetensors").read_bytes())


def _pipe(folder: Path) -> None:
    (folder / "rank_00000.safetensors").unlink()
    os.mkfifo(folder / "rank_00000.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_another_version, "iter_0000002: was written by another version of tandem"),
        (_surplus_part, r"rank_00001\.safetensors: is no part of this checkpoint; remove it"),
        (_pipe, r"rank_00000\.safetensors: is damaged, .* to go on from step 1, write 1 into"),
        (lambda folder: (folder / "state.json").unlink(), r"state\.json: cannot be read .* from step 1, write 1"),
        (lambda folder: (folder / "state.json").write_bytes(b"\0"), r"state\.json: cannot be read .* write 1 into"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_written_is_refused(
    damage: Callable[[Path], object], message: str, store: CheckpointStore
) -> None:
    damage(store.folder.path / "iter_0000002")
    with pytest.raises(CheckpointError, match=message):
        store.load({"model.weight": torch.zeros(3)}, 2)
    tensors = {"model.weight": torch.zeros(3)}
    assert store.load(tensors, 1).step == 1
    assert tensors["model.weight"].tolist() == [1, 1, 1]


def test_a_pointer_that_is_no_file_is_not_waited_for(store: CheckpointStore) -> None:
    (store.folder.path / LATEST).unlink()
    os.mkfifo(store.folder.path / LATEST)
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.latest()


def test_the_copy_of_a_sharded_tensor_stays_in_host_memory() -> None:
    mesh = DeviceMesh("cuda", [0, 1], _init_backend=False, _rank=1)
    with FakeTensorMode():  # devices without a device: only shapes, and where tensors lie
        rows = torch.empty(3, 4, device="cuda")
        own = DTensor.from_local(rows, mesh, [Shard(0)], shape=torch.Size([7, 4]), stride=(4, 1))
        copy = copied({"a": own, "b": torch.empty(2, device="cuda")})
    assert isinstance(copy["a"], DTensor)
    assert copy["a"].to_local().device.type == copy["b"].device.type == "cpu"
    assert (copy["a"].shape, copy["a"].placements) == (own.shape, own.placements)


def test_a_folder_that_is_removed_while_a_part_is_written_is_no_fault_of_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader removes it when it sees that another rank has ended; this one may still be writing."""
    original = shards.save

    def overtaken(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        shutil.rmtree(tmp_path / "step")

    monkeypatch.setattr(shards, "save", overtaken)
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors: its folder was removed while it was written"):
        shards.write_shard({"model.weight": torch.zeros(3)}, tmp_path / "step", 0)
