"""A base model's folder and an adapter's made one model folder.

Where the base is stored as plain safetensors, its files are copied and the adapted matrices changed in the copy, one
at a time: memory holds one of them, and everything else stays byte for byte, the dtype too. Other folders (`.bin`,
fp8) are loaded whole and written anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tandem.catalogue.generation import read_generation_defaults
from tandem.errors import ModelFolderError
from tandem.files import there, whole_folder
from tandem.model.families import translate
from tandem.model.folder import load, save, unwritable
from tandem.model.weights.dtypes import TORCH_DTYPES
from tandem.model.weights.files import stored_tensors, weight_files
from tandem.model.weights.fill import read_into
from tandem.model.weights.fit import FLOATS, Piece, fit, require_fit
from tandem.text.tokenizer import tokenizer_files
from tandem.training.adapters.factors import Factors
from tandem.training.adapters.lora import merge
from tandem.training.adapters.peft_folder import load_adapter, require_same_base
from tandem.training.adapters.peft_reading import Adapter, read_adapter

DESCRIBING = ("config.json", "generation_config.json")


def merge_folders(base: Path, adapter: Path, out: Path) -> None:
    """Write the model that `base` with `adapter` is, with the base's tokenizer files.

    Raises:
        ModelFolderError: One of the folders is broken, they do not go together, or `out` exists or cannot be written.
    """
    if out.exists():
        raise ModelFolderError(f"{out}: exists already; choose another folder or remove it")
    family, config, fields = translate(base)
    stored = stored_tensors(base)
    found = fit(stored, family, config, fields)
    require_fit(found, base)
    if any(one.path.suffix != ".safetensors" or one.dtype not in FLOATS for one in stored.values()):
        _merge_whole(base, adapter, out)
        return
    understood = read_adapter(adapter, config)
    try:
        with whole_folder(out) as part:
            _copy(base, part)
            _change(part, found.pieces, understood, adapter)
    except OSError as error:
        raise unwritable(out, error) from None


def _merge_whole(base: Path, adapter: Path, out: Path) -> None:
    decoder = load(base, torch.device("cpu"))
    load_adapter(decoder, adapter)
    merge(decoder)
    save(decoder, out, read_generation_defaults(base), tokenizer_files(base))


def _copy(base: Path, out: Path) -> None:
    for name, content in tokenizer_files(base).items():
        (out / name).write_bytes(content)
    files = weight_files(base)
    describing = [base / name for name in DESCRIBING if there(base / name)]
    for path in (*describing, *files.paths, *([files.index] if files.index else [])):
        shutil.copyfile(path, out / path.name)


def _change(folder: Path, pieces: Iterable[Piece], adapter: Adapter, where: Path) -> None:
    """Change the adapted matrices of the files in `folder`, which are those that `pieces` were found in."""
    for piece in pieces:
        name, expert = piece.rows.name, piece.rows.expert
        if name in adapter.beside:
            require_same_base(name, adapter.beside[name], _read(piece, adapter.beside[name].shape), where)
        if name in adapter.factors:
            delta = _delta(adapter.factors[name], expert, table=name == "embedding.weight")
            _write(folder / piece.stored.path.name, piece, _read(piece, delta.shape) + delta)


def _delta(one: Factors, expert: int | None, *, table: bool) -> Tensor:
    a, b = (one.a, one.b) if expert is None else (one.a[expert], one.b[expert])
    delta = b @ a * one.strength.scale
    return delta.T if table else delta


def _read(piece: Piece, shape: torch.Size) -> Tensor:
    values = torch.empty(shape, dtype=TORCH_DTYPES[piece.stored.dtype])
    handle = os.open(piece.stored.path, os.O_RDONLY)
    try:
        read_into(handle, values, _offset(piece), piece.stored.path)
    finally:
        os.close(handle)
    return values


def _write(path: Path, piece: Piece, values: Tensor) -> None:
    with path.open("r+b") as file:
        file.seek(_offset(piece))
        rounded = values.to(TORCH_DTYPES[piece.stored.dtype]).contiguous()
        file.write(rounded.reshape(-1).view(torch.uint8).numpy().data)


def _offset(piece: Piece) -> int:
    return piece.stored.offset + piece.first * piece.stored.row_bytes
