"""How a folder's tensors fit a model: which fills which parameter, and everything that does not fit. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.shapes import Shape, parameter_shapes
from tandem.errors import ModelFolderError
from tandem.model.families.family import Family, Rows
from tandem.model.weights.stored import StoredTensor, printable
from tandem.model.weights.tied import differing_head

FLOATS = ("F64", "F32", "F16", "BF16")
SCALED = "F8_E4M3"
SCALE = "_scale_inv"
"""Ending of the name under which a quantised tensor's scales lie (DeepSeek-V3)."""
Block = tuple[int, int]
"""Rows and columns of a quantised matrix that share one scale."""


@dataclass(frozen=True, slots=True)
class Scales:
    """What the numbers of a quantised matrix are multiplied with: one number for each block."""

    stored: StoredTensor
    block: Block


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one stored tensor and the parameter they are."""

    stored: StoredTensor
    first: int
    """The first of these rows; there are as many as the parameter has."""
    rows: Rows
    scales: Scales | None = None
    columns: range | None = None
    """Of these rows; None for all."""


@dataclass(frozen=True)
class Fit:
    """What came out."""

    pieces: tuple[Piece, ...]
    faults: tuple[str, ...]
    """One phrase each: what is surplus, missing, misshapen or of a dtype no weight has."""


def fit(stored: Mapping[str, StoredTensor], family: Family, config: ModelConfig, fields: Mapping[str, Any]) -> Fit:
    """Match a checkpoint's tensors with the parameters of a model, by their names and shapes.

    Numbers are read of one alone: a head among the files of a model whose head is its embedding.

    Args:
        stored: The checkpoint's tensors.
        family: Whose layout they are in.
        config: The model.
        fields: The `config.json` that the family read it from.
    """
    block = block_size(fields)
    shapes, wanted = parameter_shapes(config), family.tensors(config)
    known = wanted.keys() | {theirs + SCALE for theirs in wanted if theirs in stored and stored[theirs].dtype == SCALED}
    surplus = [name for name in stored if name not in known and not family.ignored(name, config, fields)]
    faults = [f"{printable(name)} is not part of the model" for name in surplus]
    faults += filter(None, [differing_head(stored, family, config)])
    pieces: list[Piece] = []
    for theirs, rows in wanted.items():
        parts = [_part_shape(shapes[one.name], one) for one in rows]
        fault = _fault(theirs, (sum(part[0] for part in parts), *parts[0][1:]), stored, block)
        if fault:
            faults.append(fault)
        else:
            pieces += _pieces(stored[theirs], rows, parts, _scales(theirs, stored, block))
    return Fit(tuple(pieces), tuple(faults))


def require_fit(result: Fit, folder: Path) -> None:
    """Refuse a folder whose tensors do not fit.

    Raises:
        ModelFolderError: Naming the first faults and counting the others.
    """
    if result.faults:
        raise ModelFolderError(
            f"{folder}: weights do not fit config.json: {_first(result.faults)}; copy the folder again"
        )


def block_size(fields: Mapping[str, Any]) -> Block | None:
    """The block that `config.json` says the weights were quantised in; None where they are not.

    Its family has refused what is no pair of sizes, as it has quantised weights where there are none.
    """
    block = (fields.get("quantization_config") or {}).get("weight_block_size")
    return None if block is None else (block[0], block[1])


def dtype_of(stored: Mapping[str, StoredTensor]) -> str:
    """The dtype most bytes of these weights have; of quantised ones, what they are computed in."""
    count: Counter[str] = Counter()
    for tensor in stored.values():
        count[tensor.dtype] += tensor.size
    most = max((name for name in (*FLOATS, SCALED) if count[name]), key=lambda name: count[name], default="F32")
    return {"F16": "float16", "BF16": "bfloat16", SCALED: "bfloat16"}.get(most, "float32")


def _part_shape(shape: Shape, rows: Rows) -> Shape:
    return shape if rows.expert is None else shape[1:]


def _fault(theirs: str, shape: Shape, stored: Mapping[str, StoredTensor], block: Block | None) -> str | None:
    tensor = stored.get(theirs)
    if tensor is None:
        return f"{theirs} is missing"
    if tensor.shape != shape:
        return f"{theirs} has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
    if tensor.dtype in FLOATS:
        return None
    if tensor.dtype != SCALED or block is None or len(shape) != 2:
        return f"{theirs} is of dtype {tensor.dtype}, which config.json does not announce"
    blocks = tuple(-(-size // per) for size, per in zip(shape, block, strict=True))
    scales = stored.get(theirs + SCALE)
    if scales is not None and scales.dtype not in FLOATS:
        return f"{theirs + SCALE} is of dtype {scales.dtype}, expected F32"
    return None if scales is not None and scales.shape == blocks else _misfit(theirs + SCALE, scales, blocks)


def _misfit(name: str, tensor: StoredTensor | None, shape: Shape) -> str:
    return f"{name} is missing" if tensor is None else f"{name} has shape {list(tensor.shape)}, expected {list(shape)}"


def _scales(theirs: str, stored: Mapping[str, StoredTensor], block: Block | None) -> Scales | None:
    if block is None or stored[theirs].dtype != SCALED:
        return None
    return Scales(stored[theirs + SCALE], block)


def _pieces(stored: StoredTensor, rows: tuple[Rows, ...], parts: list[Shape], scales: Scales | None) -> list[Piece]:
    pieces, first = [], 0
    for one, part in zip(rows, parts, strict=True):
        pieces.append(Piece(stored, first, one, scales))
        first += part[0]
    return pieces


def _first(faults: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more
