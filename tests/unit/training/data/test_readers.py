"""Every format gives the same rows with their places; what is broken is named."""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from tandem.errors import DataError
from tandem.training.data.readers import json_values
from tandem.training.data.readers.blocks import BLOCK_ROWS, NULL, Broken
from tandem.training.data.readers.files import find_files
from tandem.training.data.readers.rows import parsed, read_blocks

ROWS = [{"text": f"naïve\u2028 {n}\n", "note": 'a,"b"' if n % 2 else ""} for n in range(2500)]


def rows_of(path: Path) -> list[Any]:
    found = []
    for file in find_files(path).files:
        for block in read_blocks(file):
            assert len(block.rows) <= BLOCK_ROWS
            assert block.size > 0
            found += [(file.name, block.first + place, parsed(row)) for place, row in enumerate(block.rows)]
    return found


def write_parquet(path: Path, rows: list[Any]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=99)


def write_stream(path: Path, rows: list[Any]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, 700)


def write_file(path: Path, rows: list[Any]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, 2000)


def write_csv(path: Path, rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, list[Any]], object]] = {
    "a.parquet": write_parquet,
    "stream.arrow": write_stream,
    "file.arrow": write_file,
    "a.jsonl": lambda path, rows: path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
    "array.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "object.json": lambda path, rows: path.write_text(json.dumps({"version": 1, "data": rows})),
    "lines.json": lambda path, rows: path.write_text("\n".join(json.dumps(row) for row in rows)),
    "a.csv": write_csv,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_all_formats_give_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, ROWS)
    assert rows_of(tmp_path / name) == [(name, place, row) for place, row in enumerate(ROWS)]


def test_a_value_may_be_longer_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "CHUNK", 3)
    rows = [{"text": "long " * 20}, 12345678, {}, "é"]
    (tmp_path / "a.json").write_text("\ufeff " + json.dumps(rows, ensure_ascii=False) + "\n ", encoding="utf-8")
    assert [row for _, _, row in rows_of(tmp_path / "a.json")] == rows
    (tmp_path / "one.json").write_text('{"text": "x"}')
    assert [row for _, _, row in rows_of(tmp_path / "one.json")] == [{"text": "x"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "x"}, {"te', "is broken at character 16"),
        ('[{"text": "x"},', "ends within its array"),
        ('[{"text": "x"} {"text": "y"}]', "neither comma nor end"),
        ('{"a": [{}], "b": [{}]}', "not one of them alone holds rows"),
        ("[" * 100_000, "nests too deep"),
        ('[{"text": "x"}] [{"text": "y"}]', "character 16 .goes on behind the end of its array"),
        ('[{"text": 1' + "0" * 5000 + "}]", "is broken at character 1 .Exceeds the limit"),
    ],
)
def test_broken_json_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / "a.json")


def test_broken_rows_do_not_stop_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a"\n"\xff"\n' + b"[" * 99999 + b'\n{"a": 2}')
    rows = [row for _, _, row in rows_of(tmp_path / "a.jsonl")]
    assert [row for row in rows if not isinstance(row, Broken)] == [{"a": 1}, None, {"a": 2}]
    assert [type(row) for row in rows[2:5]] == [Broken] * 3
    assert rows[2].content == '{"a"'
    (tmp_path / "a.csv").write_bytes(b"text,n\nfine,1\n\nlacks\n\xff,2\n")
    rows = [row for _, _, row in rows_of(tmp_path / "a.csv")]
    assert rows[:2] == [{"text": "fine", "n": "1"}, None]
    assert [row.reason for row in rows[2:]] == ["has 1 fields where the first line names 2", "is no UTF-8"]


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"text": "a"}\nnull\n\n'), ("a.json", '[{"text": "a"}, null]')]
)
def test_a_null_in_place_of_a_row_is_no_blank_line(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert [row for _, _, row in rows_of(tmp_path / name) if row is not None] == [{"text": "a"}, NULL]


def test_documents_of_a_text_file_stand_between_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\n\none\n two\r\n \n\nthree\n\xff\n\nfour")
    rows = [row for _, _, row in rows_of(tmp_path / "a.txt")]
    assert [rows[0], rows[2]] == [{"text": "one\n two"}, {"text": "four"}]
    assert isinstance(rows[1], Broken)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damaged_tables_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and nothing else, or what ARROW1 begins with")
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        rows_of(tmp_path / name)


def test_offsets_that_lead_out_of_a_damaged_table_are_not_followed(tmp_path: Path) -> None:
    write_file(tmp_path / "a.arrow", [{"text": f"{number:09d}"} for number in range(9)])
    content = (tmp_path / "a.arrow").read_bytes()
    offset = struct.pack("<3i", 9, 18, 27)
    assert content.count(offset) == 1
    (tmp_path / "a.arrow").write_bytes(content.replace(offset, struct.pack("<3i", 9, 1 << 30, 27)))
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read \(In column 0: Invalid: Offset"):
        rows_of(tmp_path / "a.arrow")


def save_parquet(path: Path, table: Any) -> None:
    pyarrow.parquet.write_table(table, path)


def save_arrow(path: Path, table: Any) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write(table)


@pytest.mark.parametrize(("name", "save"), [("a.parquet", save_parquet), ("a.arrow", save_arrow)])
def test_values_that_python_has_no_object_for_break_their_row_alone(name: str, save: Any, tmp_path: Path) -> None:
    text = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, [None, pyarrow.py_buffer(struct.pack("<4i", 0, 1, 2, 3)), pyarrow.py_buffer(b"a\xffb")]
    )
    when = pyarrow.array([[{"at": 1}]] * 3, pyarrow.list_(pyarrow.struct([("at", pyarrow.timestamp("ns", "No/Zone"))])))
    save(tmp_path / name, pyarrow.table({"text": text, "when": when}))
    rows = [row for _, _, row in rows_of(tmp_path / name)]
    assert [rows[0]["text"], rows[2]["text"]] == ["a", "b"]
    assert rows[0]["when"] == [{"at": datetime(1970, 1, 1)}]
    assert isinstance(rows[1], Broken)
    assert "can't decode byte 0xff" in rows[1].reason


def test_fields_that_are_null_in_every_row_are_read(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "tool_calls": None}, {"role": "assistant", "tool_calls": None}]}
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        WRITERS[name](tmp_path / name, [row, row])
        assert [found for _, _, found in rows_of(tmp_path / name)] == [row, row]


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    table = pyarrow.table([["one"], [2], ["three"]], names=["text", "n", "text"])
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    save_parquet(tmp_path / "a.parquet", table)
    save_arrow(tmp_path / "a.arrow", table)
    for name in ("a.csv", "a.parquet", "a.arrow"):
        with pytest.raises(DataError, match=rf"{name}: has the column 'text' twice"):
            rows_of(tmp_path / name)


def test_folders(tmp_path: Path) -> None:
    def names(folder: Path) -> list[str]:
        return [file.name for file in find_files(folder).files]

    hub = tmp_path / "hub"
    for name in ("data/train-0.parquet", "data/train-1.parquet", "data/test-0.parquet", "README.txt", ".x/a.csv"):
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        (hub / name).write_bytes(b"")
    assert names(hub) == ["data/train-0.parquet", "data/train-1.parquet"]
    assert find_files(hub).left_out == ("data/test-0.parquet",)
    (hub / "data" / "more.csv").write_bytes(b"")
    with pytest.raises(DataError, match=r"mixes formats \(data/more\.csv, data/train-0\.parquet\)"):
        find_files(hub)

    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in ("data-1.arrow", "data-0.arrow", "cache-9.arrow"):
        write_stream(saved / name, ROWS[:3])
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"data-{n}.arrow"} for n in (0, 1)]}))
    assert names(tmp_path / "saved") == ["data-0.arrow", "data-1.arrow"]
    assert len(rows_of(tmp_path / "saved")) == 6
    (saved / "data-1.arrow").unlink()
    with pytest.raises(DataError, match=r"data-1\.arrow: is missing"):
        find_files(saved)


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match="no known suffix"):
        find_files(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="holds no data file"):
        find_files(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        find_files(tmp_path / "b.json")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json: is a pipe or a device"):
        find_files(tmp_path / "pipe.json")
    (tmp_path / "blob.json").symlink_to(tmp_path / "b.json")
    with pytest.raises(DataError, match=r"blob\.json: is a link to nowhere"):
        find_files(tmp_path)
