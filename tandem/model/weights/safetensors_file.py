"""The table at the head of a safetensors file, read and written. No torch.

    8 bytes           length of the table, little-endian
    table             JSON: name -> {"dtype", "shape", "data_offsets": [begin, end)}, offsets from the table's end
    everything else   the tensors, one after the other, without gaps

Source: the format's own description, https://github.com/huggingface/safetensors. The table of a stranger's file is
believed only as far as the file's own length reaches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tandem.errors import ModelFolderError
from tandem.model.weights.stored import ITEM_BYTES, StoredTensor, printable

LENGTH_BYTES = 8
LONGEST_TABLE = 100_000_000
"""The format's own limit, in bytes."""
MOST_TENSORS = 1_000_000
"""More than any model has; DeepSeek-V3 has 91 thousand."""
MOST_DIMENSIONS = 16
"""More than any tensor has."""
METADATA = "__metadata__"


def read_table(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, in the order of its table; no tensor is read.

    Raises:
        ModelFolderError: The file cannot be read, is shorter or longer than its table says, or the table is no table.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            _require(LENGTH_BYTES + length <= size, "it ends within its table of tensors", path)
            _require(length <= LONGEST_TABLE, f"its table of tensors has {length} bytes", path)
            table = file.read(length)
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror}); copy it again") from None
    data = LENGTH_BYTES + length
    tensors = {name: _tensor(name, entry, data, path) for name, entry in _entries(table, path).items()}
    _require_seamless(tensors, data, size, path)
    return tensors


def head(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """What a file starts with whose tensors follow in this order.

    Args:
        tensors: Name -> dtype, one of `ITEM_BYTES`, and shape; those with larger numbers first, which keeps each at an
            address that is a multiple of its number's size.
    """
    entries: dict[str, Any] = {METADATA: {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    table = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    table += b" " * (-len(table) % LENGTH_BYTES)
    return len(table).to_bytes(LENGTH_BYTES, "little") + table


def _entries(table: bytes, path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(table.decode(), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its table of tensors is no JSON: {printable(str(error))}") from None
    _require(isinstance(entries, dict), "its table of tensors is no JSON object", path)
    entries.pop(METADATA, None)
    _require(len(entries) <= MOST_TENSORS, f"it names {len(entries)} tensors", path)
    return entries  # type: ignore[no-any-return]


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name is there twice")
    return entries


def _tensor(name: str, entry: Any, data: int, path: Path) -> StoredTensor:
    shown, fields = printable(name), entry if isinstance(entry, dict) else {}
    shape, (begin, end) = _sizes(fields, "shape", shown, path), _range(fields, shown, path)
    dtype = str(fields.get("dtype"))
    _require(dtype in ITEM_BYTES, f"{shown} has the unknown dtype {printable(dtype)}", path)
    asked = math.prod(shape) * ITEM_BYTES[dtype]
    _require(end - begin == asked, f"{shown} has {end - begin} bytes, its shape asks for {asked}", path)
    return StoredTensor(path, dtype, shape, data + begin, asked)


def _range(fields: dict[str, Any], name: str, path: Path) -> tuple[int, int]:
    offsets = _sizes(fields, "data_offsets", name, path)
    _require(len(offsets) == 2, f"{name} has {len(offsets)} data_offsets", path)
    return offsets[0], offsets[1]


def _sizes(fields: dict[str, Any], field: str, name: str, path: Path) -> tuple[int, ...]:
    sizes = fields.get(field)
    if not isinstance(sizes, list) or len(sizes) > MOST_DIMENSIONS:
        raise _damaged(path, f"{name} has no {field}")
    whole = all(type(size) is int and 0 <= size < 2**63 for size in sizes)
    _require(whole, f"{name} has a {field} that is no list of sizes", path)
    return tuple(sizes)


def _require_seamless(tensors: dict[str, StoredTensor], data: int, size: int, path: Path) -> None:
    """One tensor after the other up to the end of the file: no two overlap, nothing is hidden or cut off."""
    reached = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.size)):
        _require(tensor.offset == reached, "its tensors overlap or leave gaps", path)
        reached += tensor.size
    _require(reached == size, f"it has {size} bytes, its table of tensors asks for {reached}", path)


def _require(holds: bool, otherwise: str, path: Path) -> None:
    if not holds:
        raise _damaged(path, otherwise)


def _damaged(path: Path, reason: str) -> ModelFolderError:
    return ModelFolderError(f"{path}: is damaged or half-written ({reason}); copy it again")
