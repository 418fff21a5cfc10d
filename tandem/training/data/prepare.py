"""Data of any known kind to files to train on: found, recognised, tokenised in parallel, and used again when unchanged.

The result is keyed by a hash of everything it depends on: the content of the data and of the tokenizer's files, and
how rows are read. Free of torch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import DataError, UsageError
from tandem.files import json_bytes, write_whole
from tandem.training.alone import alone_at
from tandem.training.data.encoding import MEGABYTE, Encoded, Encoder, Encoding, Template
from tandem.training.data.fingerprint import Fingerprints, read_mark, tokenizer_digests
from tandem.training.data.indexed import IndexedTokens
from tandem.training.data.output import (
    DocumentWriter,
    mark_path,
    pairs,
    skipped_path,
    sync_folder,
    work_folder,
)
from tandem.training.data.readers.blocks import Block
from tandem.training.data.readers.files import find_files
from tandem.training.data.readers.rows import parsed, read_blocks
from tandem.training.data.rows.kinds import AUTO, Kind, Stage, detect, named_kind, stage_of
from tandem.training.data.skipped import Reasons, SkippedRows
from tandem.training.data.workers import choose_workers, encode_blocks
from tandem.training.inputs import Inputs, differences
from tandem.training.progress import Progress, Silence

VERSION = 1
"""Rises when the same inputs would give other tokens."""
LOOKED_AT = 64
"""Rows in which the kind is looked for."""
SAMPLED = 8_000_000
"""Bytes of rows that `sample` tokenises."""
STAGE = "prepare data"
ROW_MEGABYTES = 8
"""More than the longest books have; tokenising one of them takes 1 GB."""


@dataclass(frozen=True, kw_only=True)
class PrepareSpec:
    """What to prepare, and how."""

    input: Path
    """A file or a folder."""
    tokenizer: Path
    """A model's folder, or one with its tokenizer files."""
    prefix: Path
    """Where the files go: a folder and the beginning of their names."""
    stage: Stage | None = None
    """What the data is for; None where the kind tells."""
    kind: str = AUTO
    """One of `KINDS`, a handler name of the documents, or `auto`."""
    text_key: str = "text"
    """Key of the text to pretrain on."""
    seq_length: int | None = None
    """Longest conversation, in tokens; longer ones are skipped by name. Texts are cut anywhere and need none."""
    template: Template = "auto"
    """How conversations are worded."""
    row_megabytes: int = ROW_MEGABYTES
    """Longest text or conversation, in MB; longer ones are skipped by name. Each worker takes 120 times as much memory
    for one."""
    workers: int | None = None
    """Processes; None chooses. Does not change the result."""
    wait: bool = True
    """Whether to wait while another process prepares the same files, or refuse."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is there to train on."""

    prefix: Path
    stage: Stage
    kind: Kind
    rows: int
    """Rows read."""
    documents: int
    """Texts, or conversations: the number of samples the documents call SN."""
    tokens: int
    learnt: int
    """Tokens that loss is taken of."""
    skipped: int
    """Rows, or conversations of rows, that are not in it."""
    skipped_file: Path | None
    chat_template: str | None
    """Jinja text of the template that was taken in place of the tokenizer's own; belongs beside an exported model."""
    seconds: float
    """It took to make."""
    reused: bool
    """Whether it was there already, made from the same inputs."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the first rows of every file tell of some data."""

    kind: Kind
    files: int
    size: int
    """Bytes of all files."""
    read: int
    """Bytes of them that the rows took."""
    whole: bool
    """Whether these are all rows."""
    rows: int
    documents: int
    """Texts, or conversations, that can be trained on."""
    tokens: int
    skipped: str
    """Why others cannot, the most frequent reasons first; empty where all can."""
    chat_template: str | None
    """As of `Prepared`."""
    prepared: bool
    """Whether all of it is prepared already, from the same inputs."""


def sample(spec: PrepareSpec) -> Sample:
    """Look at the first rows of every file, as `prepare` would take them; writes nothing.

    Raises:
        DataError: A file cannot be read, the kind is not recognised, or of all rows that were read none can be trained
            on.
        ModelFolderError: The tokenizer cannot be used.
        UsageError: Options contradict each other.
    """
    _check(spec)
    return _Preparation(spec, Silence()).sample()


def prepare(spec: PrepareSpec, progress: Progress, require: Callable[[Inputs], None] = lambda inputs: None) -> Prepared:
    """Prepare data, unless it is there, made from the same inputs.

    Args:
        spec: What to prepare.
        progress: Is told what happens.
        require: Is called with the inputs before anything is made from them, and raises where it may not be.

    Raises:
        DataError: The data cannot be read or recognised, or no row of it can be trained on.
        ModelFolderError: The tokenizer cannot be used.
        ProcessError: A worker died.
        UsageError: Options contradict each other, or another process prepares the same files and `wait` is off.
    """
    _check(spec)
    with alone_at(spec.prefix, progress, work="prepares data", wait=spec.wait):
        return _Preparation(spec, progress).run(require)


class _Preparation:
    """One run of `prepare`, alone at its prefix."""

    def __init__(self, spec: PrepareSpec, progress: Progress) -> None:
        self._spec, self._progress = spec, progress
        self._files = find_files(spec.input)
        self._kind = named_kind(spec.kind, spec.stage) or detect(self._first_rows(), spec.stage, spec.text_key,
                                                                 str(spec.input))  # fmt: skip
        self._stage = spec.stage or stage_of(self._kind)
        self._encoding = Encoding(
            tokenizer=spec.tokenizer,
            kind=self._kind,
            text_key=spec.text_key,
            seq_length=spec.seq_length if self._stage == "sft" else None,
            template=spec.template,
            row_megabytes=spec.row_megabytes,
        )

    def run(self, require: Callable[[Inputs], None]) -> Prepared:
        mark = read_mark(self._spec.prefix)
        fingerprints = Fingerprints(mark.get("files", {}))
        inputs = self._inputs(fingerprints)
        if mark and mark["inputs"] == inputs and _whole(self._spec.prefix, self._stage):
            self._progress.reuse(STAGE)
            return self._prepared(mark["result"], reused=True)
        require(inputs)
        if mark and (different := differences(mark["inputs"], inputs)):
            self._progress.note(f"{self._spec.prefix}: is made anew: {different}")
        result = self._make(fingerprints)
        made = {"inputs": inputs, "result": result, "files": fingerprints.known}
        write_whole(mark_path(self._spec.prefix), json_bytes(made))
        return self._prepared(result, reused=False)

    def sample(self) -> Sample:
        encoder, reasons, done, read, whole = Encoder(self._encoding), Reasons(), list[Encoded](), 0, True
        for file in self._files.files:
            begin = list(itertools.islice(read_blocks(file), 2))  # the second tells whether there is more
            whole = whole and len(begin) < 2 and read < SAMPLED
            if begin and read < SAMPLED:
                done.append(encoder.encode(begin[0]))
                read += begin[0].size
        for row in itertools.chain.from_iterable(one.skipped for one in done):
            reasons.add(row)
        rows, documents = sum(one.rows for one in done), sum(len(one.lengths) for one in done)
        self._refuse_nothing(rows, documents, reasons)
        return Sample(
            kind=self._kind, files=len(self._files.files), size=self._files.size, read=read, whole=whole, rows=rows,
            documents=documents, tokens=sum(len(one.ids) for one in done), skipped=reasons.text(),
            chat_template=encoder.chat_template, prepared=self._is_prepared(),
        )  # fmt: skip

    def _is_prepared(self) -> bool:
        mark = read_mark(self._spec.prefix)
        same = bool(mark) and mark["inputs"] == self._inputs(Fingerprints(mark["files"]))
        return same and _whole(self._spec.prefix, self._stage)

    def _inputs(self, fingerprints: Fingerprints) -> Inputs:
        return {
            "version": VERSION,
            "data": {file.name: fingerprints.of(file.path) for file in self._files.files},
            "tokenizer": tokenizer_digests(self._spec.tokenizer),
            "kind": self._kind,
            "text_key": self._spec.text_key if self._kind == "text" else None,
            "seq_length": self._encoding.seq_length,
            "template": self._spec.template if self._kind != "text" else None,
        } | self._limit()

    def _limit(self) -> Inputs:
        """What was made when there was no limit is as good as with the usual one."""
        asked = self._spec.row_megabytes
        return {} if asked == ROW_MEGABYTES else {"row_megabytes": asked}

    def _make(self, fingerprints: Fingerprints) -> dict[str, Any]:
        began, size = time.monotonic(), self._files.size
        encoder = Encoder(self._encoding)
        workers = choose_workers(self._spec.workers, size)
        self._progress.begin(STAGE, max(1, size // MEGABYTE))
        self._tell_first(encoder)
        with work_folder(self._spec.prefix) as part, SkippedRows(skipped_path(part)) as skipped:
            with ExitStack() as stack:
                writer = DocumentWriter(part, self._stage, encoder.tokenizer.vocab_size, stack)
                rows = done = 0
                for block, encoded in encode_blocks(self._blocks(), self._encoding, encoder, workers):
                    writer.add(encoded)
                    skipped.add(encoded.skipped)
                    rows, done = rows + encoded.rows, done + block.size
                    self._progress.advance(done // MEGABYTE, _numbers(writer, time.monotonic() - began))
            self._refuse_nothing(rows, writer.documents, skipped.reasons)
            self._refuse_changed(fingerprints)
        sync_folder(self._spec.prefix.parent)
        self._progress.note(f"{self._stage}: {self._found(writer)}")
        if skipped.reasons.count:
            self._progress.note(f"{skipped.reasons.count} skipped, see {skipped_path(self._spec.prefix)}: "
                                f"{skipped.reasons.text()}")  # fmt: skip
        self._progress.end(STAGE)
        return {
            "rows": rows, "documents": writer.documents, "tokens": writer.tokens, "learnt": writer.learnt,
            "skipped": skipped.reasons.count, "chat_template": encoder.chat_template,
            "seconds": round(time.monotonic() - began, 3),
        }  # fmt: skip

    def _tell_first(self, encoder: Encoder) -> None:
        if self._files.left_out:
            self._progress.note(
                f"{self._spec.input}: the split train is taken; left out: {', '.join(self._files.left_out)}"
            )
        if encoder.chat_template is not None and self._spec.template == "auto":
            self._progress.note(
                f"{self._spec.tokenizer}: has no chat template; conversations are worded by the template alpaca"
            )

    def _found(self, writer: DocumentWriter) -> str:
        if self._stage == "pretrain":
            return f"{writer.documents:,} texts, {writer.tokens:,} tokens"
        return f"{writer.documents:,} conversations ({self._kind}), {writer.tokens:,} tokens, {writer.learnt:,} learnt"

    def _refuse_nothing(self, rows: int, documents: int, reasons: Reasons) -> None:
        if not rows:
            raise DataError(f"{self._spec.input}: holds no row; check that it is the right file")
        if not documents:
            raise DataError(
                f"{self._spec.input}: none of {rows} {self._kind} rows can be trained on. {reasons.text()}; mend "
                "the data, raise seq_length, or name another kind"
            )

    def _refuse_changed(self, fingerprints: Fingerprints) -> None:
        """Files that somebody still writes or copies are not those that the mark would speak of."""
        for file in self._files.files:
            if fingerprints.changed(file.path):
                raise DataError(f"{file.path}: changed while it was read; prepare again when it is whole")

    def _blocks(self) -> Iterator[Block]:
        return itertools.chain.from_iterable(map(read_blocks, self._files.files))

    def _first_rows(self) -> Iterator[Any]:
        rows = (parsed(row) for block in self._blocks() for row in block.rows)
        return itertools.islice((row for row in rows if row is not None), LOOKED_AT)

    def _prepared(self, result: dict[str, Any], *, reused: bool) -> Prepared:
        path = skipped_path(self._spec.prefix)
        return Prepared(
            prefix=self._spec.prefix, stage=self._stage, kind=self._kind, reused=reused,
            skipped_file=path if result["skipped"] else None, **result,
        )  # fmt: skip


def _check(spec: PrepareSpec) -> None:
    if spec.workers is not None and spec.workers < 1:
        raise UsageError(f"workers {spec.workers}: at least one must do the work; raise it")
    if spec.row_megabytes < 1:
        raise UsageError(f"row_megabytes {spec.row_megabytes}: leaves no room for a row; raise it")
    if spec.seq_length is not None and spec.seq_length < 2:
        raise UsageError(f"seq_length {spec.seq_length}: is too short to learn from; raise it")
    if not spec.prefix.name or spec.prefix.is_dir():
        raise UsageError(f"{spec.prefix}: is a folder; add how the files' names shall begin: {spec.prefix / 'data'}")


def _whole(prefix: Path, stage: Stage) -> bool:
    """Whether the files that a mark speaks of are still there, and whole."""
    try:
        for pair in pairs(prefix, stage):
            IndexedTokens(pair)
    except DataError:
        return False
    return True


def _numbers(writer: DocumentWriter, seconds: float) -> str:
    rate = writer.tokens / max(seconds, 1e-9)
    return f"MB  {writer.documents:,} documents  {writer.tokens:,} tokens  {rate:,.0f} tokens/s"
