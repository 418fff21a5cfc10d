"""The files of a model folder that hold its weights, and every tensor in them. No torch, unless the files are torch's.

In this order, the first that is there:

    model.safetensors.index.json     the files it names
    model.safetensors
    *.safetensors
    pytorch_model.bin.index.json     the files it names
    pytorch_model.bin
    *.bin
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tandem.errors import ModelFolderError
from tandem.files import read_json_object, require_regular, there
from tandem.model.weights import safetensors_file
from tandem.model.weights.stored import StoredTensor, printable

STEMS = {"safetensors": "model", "bin": "pytorch_model"}
"""Ending of weight files -> what the usual ones are called."""
NO_WEIGHTS = ("consolidated", "adapter_", "training_args", "optimizer", "scheduler", "rng_state")
"""Beginnings of files with such endings that are something else, or the same weights in another layout."""
POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class WeightFiles:
    """Which files to read."""

    paths: tuple[Path, ...]
    index: Path | None = None
    named: dict[str, str] | None = None
    """The index's own table: tensor -> file."""


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's weights by its name there; none is read.

    Raises:
        ModelFolderError: There are no weights, an index names what is not there, a tensor is there twice, or a file is
            damaged.
    """
    files = weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in files.paths:
        table = _read_table(path)
        for name in table.keys() & tensors.keys():
            also = tensors[name].path.name
            raise ModelFolderError(f"{path}: holds {printable(name)}, and so does {also}; remove one of the files")
        tensors |= table
    _check_index(files, tensors)
    return tensors


def weight_files(folder: Path) -> WeightFiles:
    """The files to read; raises as `stored_tensors`."""
    for ending, stem in STEMS.items():
        index, single = folder / f"{stem}.{ending}.index.json", folder / f"{stem}.{ending}"
        if there(index):
            return _indexed(index)
        found = [single] if there(single) else _unnamed(folder, ending)
        if found:
            return WeightFiles(tuple(found))
    raise ModelFolderError(f"{folder}: has no *.safetensors and no *.bin file; copy the weights too")


def _unnamed(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*.{ending}") if not path.name.startswith(NO_WEIGHTS))


def _indexed(index: Path) -> WeightFiles:
    named = read_json_object(index, ModelFolderError).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise ModelFolderError(f"{index}: weight_map is no map from tensors to files; copy the file again")
    names, there = sorted(set(named.values())), {path.name for path in index.parent.iterdir()}
    absent = [name for name in names if name not in there]
    if absent:
        first, more = printable(absent[0]), f", and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise ModelFolderError(f"{index}: names {first}, which is not in this folder{more}; copy the missing files")
    return WeightFiles(tuple(index.parent / name for name in names), index, named)


def _check_index(files: WeightFiles, tensors: dict[str, StoredTensor]) -> None:
    if files.named is None:
        return
    for name, file in files.named.items():
        if name not in tensors or tensors[name].path.name != file:
            where = f"{printable(file)}, which does not hold it"
            raise ModelFolderError(f"{files.index}: puts {printable(name)} into {where}; copy index and weights again")
    for name in tensors.keys() - files.named.keys():
        where = tensors[name].path.name
        raise ModelFolderError(f"{files.index}: leaves out {printable(name)} of {where}; copy index and weights again")


def _read_table(path: Path) -> dict[str, StoredTensor]:
    _refuse_pointer(path)
    if path.suffix == ".safetensors":
        return safetensors_file.read_table(path)
    from tandem.model.weights import torch_file  # a room of its own: it needs torch

    return torch_file.read_table(path)


def _refuse_pointer(path: Path) -> None:
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror}); copy it again") from None
    if start == POINTER:
        raise ModelFolderError(f"{path}: is only Git LFS's pointer to the weights; fetch them with `git lfs pull`")
