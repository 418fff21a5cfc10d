"""A corpus every machine has: Python files, by default those of the standard library, and their docstrings.

Files give the texts to pretrain on; docstrings give questions and answers in OpenAI's message form. The manifest
lists every file by hash, so a run can be repeated and checked. Nothing is imported or executed: files are only read
and parsed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from tandem.errors import DataError
from tandem.files import json_bytes, whole_folder
from tandem.training.data.docstrings import questions_and_answers

STANDARD_LIBRARY = "python-stdlib"
"""The name of the standard library as a source."""

SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages",
                             "dist-packages", "encodings", "ensurepip", "__pycache__"})  # fmt: skip
"""Tests repeat themselves, `encodings` is tables, and other people's packages differ from machine to machine."""

EXTRACTION = 1
"""Rises when the same files would give other rows."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of the corpus."""

    path: str
    """Below the source's root, with forward slashes."""
    text: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Sources:
    """All files of a corpus, sorted by path."""

    files: tuple[SourceFile, ...]
    undecodable: tuple[str, ...]
    """Paths of files that are not UTF-8; left out, and named in the manifest."""

    @property
    def digest(self) -> str:
        """SHA-256 over every path and content, and over how rows are made of them."""
        total = hashlib.sha256(f"extraction {EXTRACTION}\n".encode())
        for file in self.files:
            total.update(f"{file.sha256} {file.path}\n".encode())
        return total.hexdigest()


def gather(source: str) -> Sources:
    """Read the Python files of a source.

    Args:
        source: `python-stdlib`, or a folder.

    Raises:
        DataError: The folder is missing or holds no Python file.
    """
    root = Path(sysconfig.get_path("stdlib")) if source == STANDARD_LIBRARY else Path(source)
    files, undecodable = [], []
    for path in sorted(_python_files(root)):
        content, name = path.read_bytes(), _printable(path.relative_to(root))
        try:
            files.append(SourceFile(path=name, text=content.decode(), sha256=hashlib.sha256(content).hexdigest()))
        except UnicodeDecodeError:
            undecodable.append(name)
    if not files:
        raise DataError(f"{root}: holds no Python files; give a folder with some, or {STANDARD_LIBRARY}")
    return Sources(files=tuple(files), undecodable=tuple(undecodable))


def write_corpus(sources: Sources, folder: Path) -> None:
    """Write `corpus.parquet` (path, text), `instructions.jsonl` and the manifest `corpus.json` into a new folder."""
    instructions = [row for file in sources.files for row in questions_and_answers(file.path, file.text)]
    table = {"path": [file.path for file in sources.files], "text": [file.text for file in sources.files]}
    with whole_folder(folder) as part:
        pyarrow.parquet.write_table(pyarrow.table(table), part / "corpus.parquet", compression="zstd")
        (part / "instructions.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in instructions), encoding="utf-8"
        )
        (part / "corpus.json").write_bytes(json_bytes(_manifest(sources, len(instructions))))


def read_texts(folder: Path) -> list[str]:
    """The texts of a corpus folder, in order.

    Raises:
        DataError: `corpus.parquet` cannot be read.
    """
    path = folder / "corpus.parquet"
    try:
        column = pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove the folder, it is made again") from None
    return [str(text) for text in column]


def _python_files(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        # Other people's packages are many times the library, so they are not even walked through.
        below[:] = [name for name in below if name not in SKIPPED_FOLDERS]
        paths = (Path(folder, name) for name in names if name.endswith(".py"))
        yield from (path for path in paths if path.is_file())


def _manifest(sources: Sources, instructions: int) -> dict[str, object]:
    return {
        "digest": sources.digest,
        "files": {file.path: file.sha256 for file in sources.files},
        "undecodable": list(sources.undecodable),
        "instructions": instructions,
    }


def _printable(path: Path) -> str:
    """A path as text that every file can hold, also one whose bytes are no UTF-8."""
    return path.as_posix().encode(errors="surrogateescape").decode(errors="backslashreplace")
