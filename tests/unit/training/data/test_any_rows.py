"""Whatever rows hold, in whatever file: each is prepared, or named in the side file with a reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from tandem.text.trainer import train_tokenizer
from tandem.training.data.encoding import Encoder, Encoding
from tandem.training.data.readers.files import find_files
from tandem.training.data.readers.rows import read_blocks
from tandem.training.data.rows.kinds import KINDS, Kind
from tandem.training.data.skipped import SkippedRows

KEYS = ("text", "instruction", "input", "output", "system", "history", "conversations", "from", "value", "tools",
        "messages", "role", "content", "tool_calls", "type", "chat", "turn_1", "turn_٢", "Human", "MOSS")  # fmt: skip
WORDS = ("human", "gpt", "observation", "user", "assistant", "system", "tool", "<s>", "\ud800", "\0", "e\u0301")
texts = st.sampled_from(WORDS) | st.text(max_size=9)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
)
question, answer = texts.map(lambda text: f"q {text}"), texts.map(lambda text: f"a {text}")
ROWS: dict[Kind, st.SearchStrategy[Any]] = {
    "text": st.fixed_dictionaries({"text": values | texts}),
    "alpaca": st.fixed_dictionaries({"instruction": question | values, "output": answer | values},
                                    optional={"input": values, "system": values, "history": values}),
    "sharegpt": st.fixed_dictionaries({"conversations": st.lists(st.fixed_dictionaries({"from": texts, "value": texts})
                                                                 | values, max_size=4) | values}),
    "openai": st.fixed_dictionaries({"messages": st.lists(st.fixed_dictionaries({"role": texts, "content": texts})
                                                          | values, max_size=4) | values}),
    "moss": st.fixed_dictionaries({"chat": st.dictionaries(texts, st.fixed_dictionaries({"Human": texts, "MOSS": texts})
                                                           | values, max_size=3) | values}),
}  # fmt: skip
ROWS["moss-turns"] = ROWS["moss"]


def write_csv(path: Path, rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        keys = list(dict.fromkeys(key for row in rows for key in row)) or ["text"]
        csv.writer(file).writerows([keys, *([row.get(key) for key in keys][: 1 + len(row)] for row in rows)])


def write_arrow(path: Path, rows: list[Any]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path, list[Any]], object]] = {
    "a.jsonl": lambda path, rows: path.write_bytes(b"".join(json.dumps(row).encode() + b"\n\xff{\n" for row in rows)),
    "a.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "a.csv": write_csv,
    "a.txt": lambda path, rows: path.write_bytes("\n\n".join(map(str, rows)).encode(errors="surrogatepass")),
    "a.parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
    "a.arrow": write_arrow,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any") / "tokenizer"
    train_tokenizer(["hello bye naïve 東京 hello bye"] * 9, 280, folder, 128)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_prepared_or_named(tokenizer: Path, tmp_path: Path, kind: Kind, name: str) -> None:
    encoder = Encoder(
        Encoding(tokenizer=tokenizer, kind=kind, text_key="text", seq_length=64, template="auto", row_megabytes=1)
    )
    path, side = tmp_path / name, tmp_path / "skipped.jsonl"
    seen = [0, 0]

    @settings(max_examples=25, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.lists(ROWS[kind], min_size=1, max_size=4))
    def every(rows: list[Any]) -> None:
        side.unlink(missing_ok=True)
        try:
            WRITERS[name](path, rows)
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
            reject()  # no table can hold them
        read = documents = 0
        named: list[int] = []
        with SkippedRows(side) as skipped:
            for block in read_blocks(find_files(path).files[0]):
                encoded = encoder.encode(block)
                skipped.add(encoded.skipped)
                assert encoded.lengths.sum() == len(encoded.ids)
                assert encoded.learnt is None or len(encoded.learnt) == len(encoded.ids)
                read, documents = read + encoded.rows, documents + len(encoded.lengths)
        with suppress(FileNotFoundError):
            named = [json.loads(line)["row"] for line in side.read_text().splitlines()]
        assert read >= len(rows) or name == "a.txt"
        if kind == "moss-turns":  # each turn for itself
            assert read <= documents + len(named)
        else:
            assert read == documents + len(named)
            assert len(set(named)) == len(named)
        seen[0], seen[1] = seen[0] + documents, seen[1] + len(named)

    every()
    assert sum(seen) > 0
