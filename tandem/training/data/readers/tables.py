"""Files with columns: Parquet, Arrow, CSV. Rows are objects with the columns' names."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tandem.training.data.readers.blocks import Broken, Sized, readable

ROWS_AT_ONCE = 1024


def read_parquet(path: Path) -> Iterator[Sized]:
    """The rows of a Parquet file; one row group is held at a time."""
    with readable(path, pyarrow.ArrowException), pyarrow.parquet.ParquetFile(path) as file:
        each = path.stat().st_size // max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            yield from ((row, each) for row in batch.to_pylist())


def read_arrow(path: Path) -> Iterator[Sized]:
    """The rows of an Arrow IPC file or stream, mapped and not held."""
    with readable(path, pyarrow.ArrowException), pyarrow.memory_map(str(path)) as source:
        for batch in _record_batches(source):
            for begin in range(0, batch.num_rows, ROWS_AT_ONCE):
                rows = batch.slice(begin, ROWS_AT_ONCE)
                each = rows.nbytes // rows.num_rows
                yield from ((row, each) for row in rows.to_pylist())


def _record_batches(source: Any) -> Iterator[Any]:
    """Both layouts end in `.arrow`; the file's begins and ends with `ARROW1`, the stream's does not."""
    if source.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(source)
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    source.seek(0)
    return iter(pyarrow.ipc.open_stream(source))


def read_csv(path: Path) -> Iterator[Sized]:
    """The rows of a CSV file (RFC 4180) by the names in its first line; bytes that are no UTF-8 make a row broken."""
    csv.field_size_limit(sys.maxsize)  # a document may well be longer than the 128 KiB that Python allows a field
    with readable(path, csv.Error), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        for fields in lines:
            yield _csv_row(header, fields), sum(map(len, fields)) + len(fields)


def _csv_row(header: list[str], fields: list[str]) -> Any:
    if not fields:
        return None  # a blank line
    text = ",".join(fields)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return Broken(text.encode(errors="surrogateescape").decode(errors="backslashreplace"), "is no UTF-8")
    if len(fields) != len(header):
        return Broken(text, f"has {len(fields)} fields where the first line names {len(header)}")
    return dict(zip(header, fields, strict=True))
