"""Tensors of all ranks on disk: each rank writes its own part, and any number of ranks read what they need of it.

    rank_00000.safetensors    rank 0's rows of every tensor, and what is whole on every rank
    rank_00001.safetensors    rank 1's rows

PyTorch's distributed checkpoints (DCP) in their safetensors form: which rows of which tensor a file holds stands in its
header, so nothing has to be agreed between ranks, and nothing is pickled.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from tandem.errors import CheckpointError


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory: training goes on while they are written."""
    # Of a sharded tensor, too: `DTensor.from_local` would carry the copy back to the device of the mesh.
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def write_shard(tensors: Mapping[str, Tensor], folder: Path, rank: int) -> Path:
    """Write this rank's part; returns its file.

    Args:
        tensors: The same names on every rank; sharded ones as `DTensor`.
        folder: Is there.
        rank: Which one this is.

    Raises:
        CheckpointError: The disk is full, or the system does not let it be written; or another rank, which has ended,
            took the folder along.
    """
    path = folder / f"rank_{rank:05d}.safetensors"
    own = {name: tensor for name, tensor in tensors.items() if rank == 0 or isinstance(tensor, DTensor)}
    part = folder / f".rank_{rank:05d}"
    try:
        with _each_for_itself():
            save(own, storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True), no_dist=True)
        file = next(part.glob("*.safetensors"), None)
        if file is None:
            raise CheckpointError(f"{path}: its folder was removed while it was written; has another rank ended?")
        file.rename(path)
    except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
        raise CheckpointError(f"{path}: cannot be written ({_first_line(error)}); free disk space and go on") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return path


def read_shards(tensors: dict[str, Tensor], folder: Path, beginning: str = "") -> None:
    """Fill tensors from the parts of all ranks, however many these were.

    Args:
        tensors: By name.
        folder: Of one checkpoint.
        beginning: Of the names that are read; tensors of other names in the checkpoint are left alone.

    Raises:
        CheckpointError: A part cannot be read, or a tensor is missing, surplus or misshapen.
    """
    try:
        reader = HuggingFaceStorageReader(str(folder))
        stored = reader.read_metadata().state_dict_metadata
        _check_fit(tensors, {name: one for name, one in stored.items() if name.startswith(beginning)}, folder)
        with _each_for_itself():
            load(dict(tensors), storage_reader=reader, no_dist=True)
    except (OSError, SafetensorError, RuntimeError, CheckpointException) as error:
        raise CheckpointError(f"{folder}: cannot be read ({_first_line(error)})") from None


@contextmanager
def _each_for_itself() -> Iterator[None]:
    """Without the warning that ranks are not asked: they need not be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _check_fit(tensors: Mapping[str, Tensor], stored: Mapping[str, Any], folder: Path) -> None:
    if different := sorted(tensors.keys() ^ stored.keys()):
        what = "is not in it" if different[0] in tensors else "is none of the model's"
        raise CheckpointError(f"{folder}: {different[0]} {what}; use the checkpoint's own recipe")
    for name, tensor in tensors.items():
        if tensor.shape != stored[name].size:
            sizes = f"{list(stored[name].size)} in it and {list(tensor.shape)} in the model"
            raise CheckpointError(f"{folder}: {name} has {sizes}; use the checkpoint's own recipe")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
