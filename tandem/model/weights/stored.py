"""One tensor as it lies in a file: the form every reader of weight files agrees on. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one number, by the names that safetensors gives to dtypes."""

LONGEST = 200
"""Characters of somebody else's text that a message shows."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's numbers lie: little-endian, in rows, without gaps."""

    path: Path
    dtype: str
    """A name of `ITEM_BYTES`."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte, from the start of the file."""
    size: int
    """In bytes."""

    @property
    def row_bytes(self) -> int:
        """Bytes of everything behind one index of the first dimension."""
        return self.size // self.shape[0] if self.shape and self.shape[0] else self.size


def printable(name: str) -> str:
    """A name out of somebody else's file, fit for one line of a message."""
    return name if name.isprintable() and len(name) <= LONGEST else repr(name[:LONGEST])
