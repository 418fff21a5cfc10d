"""All rows of a data file, whatever its format, in blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tandem.training.data.readers.blocks import NULL, Block, Broken, Reader, blocks
from tandem.training.data.readers.files import DataFile
from tandem.training.data.readers.json_values import read_json
from tandem.training.data.readers.lines import read_json_lines, read_text
from tandem.training.data.readers.tables import read_arrow, read_csv, read_parquet

READERS: dict[str, Reader] = {
    "parquet": read_parquet, "arrow": read_arrow, "csv": read_csv, "json": read_json, "jsonl": read_json_lines,
    "txt": read_text,
}  # fmt: skip


def read_blocks(file: DataFile) -> Iterator[Block]:
    """The rows of a file, block after block.

    Raises:
        DataError: The file cannot be read.
    """
    return blocks(file.name, READERS[file.format](file.path))


def parsed(row: Any) -> Any:
    """A row as an object: a line of JSON is parsed, and `Broken` if that fails; None is a blank line."""
    if not isinstance(row, bytes):
        return row
    if not row.strip():
        return None
    try:
        value = json.loads(row.decode())
    except (ValueError, RecursionError) as error:
        return Broken(row.decode(errors="backslashreplace").rstrip("\r\n"), f"is no JSON ({error})")
    return NULL if value is None else value
