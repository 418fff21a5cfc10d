"""The tensors of a `.bin` file as `torch.save` writes it: a zip archive of a pickled table and the numbers beside it.

`torch.load` reads the table alone, with `weights_only=True`: it builds tensors and containers and calls nothing else,
and on the meta device it leaves the numbers where they are. What it keeps is where they lie.

Before that, the archive's own list is looked at: nothing in it may unfold to more than the file holds. And so are the
names in the table: what torch would call beside what a tensor is made of can take any amount of memory.
"""

from __future__ import annotations

import pickletools
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tandem.errors import ModelFolderError
from tandem.model.weights.dtypes import STORED_DTYPES
from tandem.model.weights.stored import StoredTensor, printable

ZIP = b"PK\x03\x04"
LONGEST_TABLE = 100_000_000
"""Bytes; as large as safetensors lets a table be."""
LONGEST_ORDER = 16
"""Bytes; the name of a byte order is shorter."""
TENSORS = re.compile(
    r"collections\.OrderedDict"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|meta_tensor_no_storage)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.nn\.parameter\.Parameter|torch\.Tensor"
    r"|torch\.(cuda\.|storage\.)?\w+Storage|torch\.(bool|[a-z]+\d\w*)"
)
"""What a table of plain tensors names: how they are rebuilt, kinds of storage, dtypes."""
UNPICKLER = "WeightsUnpickler error:"
"""Where torch begins to say what is wrong."""
SUPPORTED = "2.9 to 2.13"
"""Versions of torch that say where in its file a tensor lies; as in pyproject.toml."""


def read_table(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, in its own order; no tensor is read.

    Raises:
        ModelFolderError: The file cannot be read, is damaged, asks for code to be run, or holds other things than
            tensors that lie in rows.
    """
    try:
        _require_plain_zip(path)
        tensors = _load(path)
        size = path.stat().st_size
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror}); copy it again") from None
    if not isinstance(tensors, dict):
        raise ModelFolderError(f"{path}: holds no table of tensors; give the weights of a model")
    return {str(name): _stored(printable(str(name)), tensor, path, size) for name, tensor in tensors.items()}


def _require_plain_zip(path: Path) -> None:
    """Numbers are read from where they lie, so they must lie there as they are."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            raise ModelFolderError(
                f"{path}: is damaged, or was written by torch before 1.6; copy it again, or load it with "
                "weights_only=True and save it anew"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            _require_small(archive, path)
            orders = [archive.read(name) for name in archive.namelist() if name.endswith("/byteorder")]
            tables = [archive.read(name) for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            foreign = next((name for table in tables for name in _named(table) if not TENSORS.fullmatch(name)), None)
    except (zipfile.BadZipFile, EOFError, LookupError, ValueError, ArithmeticError, RuntimeError) as error:
        raise _damaged(path, str(error)) from None
    if any(order != sys.byteorder.encode() for order in orders):
        raise _packed(path)
    if foreign is not None:
        raise _damaged(path, f"its table asks for {printable(foreign)}, of which no plain tensor is made")


def _named(table: bytes) -> Iterator[str]:
    """What a pickle asks for by name. Read without being run, as torch does: it stops at the first end, too."""
    for opcode, argument, _ in pickletools.genops(table):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1)


def _require_small(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse what would unfold to more than it is, before any of it is read."""
    records, whole = archive.infolist(), path.stat().st_size
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise _packed(path)
    most = {"data.pkl": LONGEST_TABLE, "byteorder": LONGEST_ORDER}
    for record in records:
        size = record.file_size
        if size != record.compress_size or size > min(whole, most.get(record.filename.rpartition("/")[2], whole)):
            raise _damaged(path, f"its record {record.filename} claims {size} bytes")


def _packed(path: Path) -> ModelFolderError:
    return ModelFolderError(f"{path}: is compressed or of another byte order; load it with torch and save it anew")


def _load(path: Path) -> Any:
    try:
        tensors = torch.load(path, map_location="meta", weights_only=True)
        located = all(_offset_of(tensor) is not None for tensor in _plain_tensors(tensors))
        return tensors if located else _load_faked(path)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes provoke in torch is that file's fault
        raise _damaged(path, str(error)) from None


def _load_faked(path: Path) -> Any:
    """The way of older torch, which keeps offsets for fake tensors alone; slower."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.load(path, weights_only=True)


def _plain_tensors(table: Any) -> list[Tensor]:
    return [value for value in table.values() if _is_plain(value)] if isinstance(table, dict) else []


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.dtype in STORED_DTYPES


def _offset_of(tensor: Tensor) -> int | None:
    """Where in its file the storage of a tensor lies that was loaded without its numbers."""
    return getattr(tensor.untyped_storage(), "_checkpoint_offset", None)


def _stored(name: str, tensor: Any, path: Path, file_size: int) -> StoredTensor:
    if not _is_plain(tensor):
        raise ModelFolderError(f"{path}: {name} is no plain tensor; give a model's weights and no training state")
    if not tensor.is_contiguous():
        raise ModelFolderError(f"{path}: {name} does not lie in rows; save it with .contiguous()")
    begin, size = int(tensor.storage_offset()) * tensor.itemsize, tensor.numel() * tensor.itemsize
    storage = _offset_of(tensor)
    if storage is None:
        raise ModelFolderError(
            f"{path}: torch {torch.__version__} does not say where {name} lies: it was saved from the meta device, "
            f"without numbers, or this torch is none of {SUPPORTED}; save it anew as safetensors"
        )
    if begin + size > tensor.untyped_storage().nbytes() or storage + begin + size > file_size:
        raise _damaged(path, f"{name} reaches beyond its end")
    return StoredTensor(path, STORED_DTYPES[tensor.dtype], tuple(tensor.shape), storage + begin, size)


def _damaged(path: Path, reason: str) -> ModelFolderError:
    """Torch explains itself at length, and how to run what is in the file; one line of it says what is wrong."""
    reason = reason.partition(UNPICKLER)[2] or reason
    telling = next((line.strip() for line in reason.splitlines() if line.strip()), "no reason given")
    if "add_safe_globals" in telling:
        telling = "its table makes other things than tensors"
    return ModelFolderError(f"{path}: is damaged or asks for code to be run ({printable(telling)}); get it anew")
