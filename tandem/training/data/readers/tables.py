"""Files with columns: Parquet, Arrow, CSV. Rows are objects with the columns' names."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from tandem.errors import DataError, printable
from tandem.training.data.readers.blocks import Broken, Sized, readable

ROWS_AT_ONCE = 1024
UNREAD = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}


def read_parquet(path: Path) -> Iterator[Sized]:
    """The rows of a Parquet file; one row group is held at a time."""
    with readable(path, pyarrow.ArrowException), pyarrow.parquet.ParquetFile(path) as file:
        _require_names(path, file.schema_arrow.names)
        each = path.stat().st_size // max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
            yield from ((row, each) for row in _rows(batch))


def read_arrow(path: Path) -> Iterator[Sized]:
    """The rows of an Arrow IPC file or stream, mapped and not held."""
    with readable(path, pyarrow.ArrowException), pyarrow.memory_map(str(path)) as source:
        for batch in _record_batches(source):
            _require_names(path, batch.schema.names)
            _require_sound(batch)
            for begin in range(0, batch.num_rows, ROWS_AT_ONCE):
                rows = batch.slice(begin, ROWS_AT_ONCE)
                each = rows.nbytes // rows.num_rows
                yield from ((row, each) for row in _rows(rows))


def _require_sound(batch: Any) -> None:
    """Of a damaged file, offsets lead anywhere in memory; texts that are no UTF-8 harm their row alone."""
    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid:
        batch.cast(_with_types(batch.schema, _unread_type)).validate(full=True)


def _rows(batch: Any) -> list[Any]:
    """The rows of a record batch as objects; those with a value that Python has no object for are broken."""
    wanted = _with_types(batch.schema, _readable_type)
    batch = pyarrow.record_batch(
        [_cast(*pair) for pair in zip(batch.columns, wanted.types, strict=True)], schema=wanted
    )
    try:
        return list(batch.to_pylist())
    except ValueError:  # text that is no UTF-8, a time out of range; which row's, only each alone can say
        return [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _cast(column: Any, kind: Any) -> Any:
    """The column as another type; itself where it is that, since no cast takes what Parquet makes of untyped nulls."""
    return column if column.type == kind else column.cast(kind, safe=False)


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except ValueError as error:
        return Broken(", ".join(batch.schema.names), f"holds what cannot be read ({error})")


def _readable_type(kind: Any) -> Any:
    """Times as Python has them: in microseconds, and in no zone, which would have to be known."""
    return pyarrow.timestamp("us") if pyarrow.types.is_timestamp(kind) else kind


def _unread_type(kind: Any) -> Any:
    """Texts as the bytes they are."""
    return UNREAD.get(kind, kind)


def _with_types(fields: Iterable[Any], changed: Callable[[Any], Any]) -> Any:
    """Columns with the types that `changed` gives them, and what is inside them, too."""

    def within(kind: Any) -> Any:
        if pyarrow.types.is_list(kind):
            return pyarrow.list_(kind.value_field.with_type(within(kind.value_type)))
        if pyarrow.types.is_struct(kind):
            return pyarrow.struct([field.with_type(within(field.type)) for field in kind])
        return changed(kind)

    return pyarrow.schema([field.with_type(within(field.type)) for field in fields])


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
        _require_names(path, header)
        for fields in lines:
            yield _csv_row(header, fields), sum(map(len, fields)) + len(fields)


def _require_names(path: Path, names: Iterable[str]) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(
            f"{path}: has the column {printable(repr(twice))} twice, and a row can have only one of them; rename or "
            "remove one"
        )


def _csv_row(header: list[str], fields: list[str]) -> Any:
    if not fields:
        return None  # a blank line
    text = ",".join(fields)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return Broken(text.encode(errors="surrogateescape").decode(errors="backslashreplace"), "is no UTF-8")
    if len(fields) != len(header):
        return Broken(text, f"has {len(fields)} fields where the first line names {len(header)}")
    return dict(zip(header, fields, strict=True))
