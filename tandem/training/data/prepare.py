"""Data of any known kind to files to train on: found, recognised, tokenised in parallel, and used again when unchanged.

The result is keyed by a hash of everything it depends on: the content of the data and of the tokenizer's files, and
how rows are read. Free of torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import DataError
from tandem.files import json_bytes, write_whole
from tandem.training.alone import alone_at
from tandem.training.data.encoding import MEGABYTE, Encoder
from tandem.training.data.fingerprint import Fingerprints, read_mark
from tandem.training.data.output import (
    DocumentWriter,
    mark_path,
    skipped_path,
    sync_folder,
    work_folder,
)
from tandem.training.data.rows.kinds import Kind, Stage
from tandem.training.data.skipped import SkippedRows
from tandem.training.data.source import Source
from tandem.training.data.spec import PrepareSpec
from tandem.training.data.workers import choose_workers, encode_blocks
from tandem.training.inputs import Inputs, differences
from tandem.training.progress import Progress

STAGE = "prepare data"


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
    reasons: str = ""
    """Why they are not: the most frequent reasons, each with how often, and where it was met first."""
    skipped_file: Path | None
    chat_template: str | None
    """Jinja text of the template that was taken in place of the tokenizer's own; belongs beside an exported model."""
    seconds: float
    """It took to make."""
    reused: bool
    """Whether it was there already, made from the same inputs."""


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
        UsageError: Another process prepares the same files and `wait` is off.
    """
    with alone_at(spec.prefix, progress, work="prepares data", wait=spec.wait):
        return _Preparation(spec, progress).run(require)


class _Preparation:
    """One run of `prepare`, alone at its prefix."""

    def __init__(self, spec: PrepareSpec, progress: Progress) -> None:
        self._spec, self._progress = spec, progress
        self._source = Source(spec)

    def run(self, require: Callable[[Inputs], None]) -> Prepared:
        mark = read_mark(self._spec.prefix)
        fingerprints = Fingerprints(mark.get("files", {}))
        inputs = self._source.inputs(fingerprints)
        if self._source.is_prepared(mark, inputs):
            self._progress.reuse(STAGE)
            self._tell(mark["result"])
            return self._prepared(mark["result"], reused=True)
        require(inputs)
        if mark and (different := differences(mark["inputs"], inputs)):
            self._progress.note(f"{self._spec.prefix}: is made anew: {different}")
        result = self._make(fingerprints)
        made = {"inputs": inputs, "result": result, "files": fingerprints.known}
        write_whole(mark_path(self._spec.prefix), json_bytes(made))
        return self._prepared(result, reused=False)

    def _make(self, fingerprints: Fingerprints) -> dict[str, Any]:
        began, size = time.monotonic(), self._source.files.size
        encoder = Encoder(self._source.encoding)
        workers = choose_workers(self._spec.workers, size)
        self._progress.begin(STAGE, max(1, size // MEGABYTE))
        self._tell_first(encoder)
        with work_folder(self._spec.prefix) as part, SkippedRows(skipped_path(part)) as skipped:
            with ExitStack() as stack:
                writer = DocumentWriter(part, self._source.stage, encoder.tokenizer.vocab_size, stack)
                rows = done = 0
                for block, encoded in encode_blocks(self._source.blocks(), self._source.encoding, encoder, workers):
                    writer.add(encoded)
                    skipped.add(encoded.skipped)
                    rows, done = rows + encoded.rows, done + block.size
                    self._progress.advance(done // MEGABYTE, _numbers(writer, time.monotonic() - began))
            self._source.refuse_nothing(rows, writer.documents, skipped.reasons)
            self._refuse_changed(fingerprints)
        sync_folder(self._spec.prefix.parent)
        result = {
            "rows": rows, "documents": writer.documents, "tokens": writer.tokens, "learnt": writer.learnt,
            "skipped": skipped.reasons.count, "reasons": skipped.reasons.text(), "chat_template": encoder.chat_template,
            "seconds": round(time.monotonic() - began, 3),
        }  # fmt: skip
        self._tell(result)
        self._progress.end(STAGE)
        return result

    def _tell_first(self, encoder: Encoder) -> None:
        if self._source.files.left_out:
            self._progress.note(
                f"{self._spec.input}: the split train is taken; left out: {', '.join(self._source.files.left_out)}"
            )
        if encoder.chat_template is not None and self._spec.template == "auto":
            self._progress.note(
                f"{self._spec.tokenizer}: has no chat template; conversations are worded by the template alpaca"
            )

    def _tell(self, result: dict[str, Any]) -> None:
        """What there is to train on, and what is left out of it: also where it was made before."""
        found = f"{result['documents']:,} texts, {result['tokens']:,} tokens"
        if self._source.stage == "sft":
            found = (
                f"{result['documents']:,} conversations ({self._source.kind}), {result['tokens']:,} tokens, "
                f"{result['learnt']:,} learnt"
            )
        self._progress.note(f"{self._source.stage}: {found}")
        if result["skipped"]:
            reasons = result.get("reasons", "each has its reason there")  # data of an earlier version does not say
            self._progress.note(f"{result['skipped']} skipped, see {skipped_path(self._spec.prefix)}: {reasons}")

    def _refuse_changed(self, fingerprints: Fingerprints) -> None:
        """Files that somebody still writes or copies are not those that the mark would speak of."""
        for file in self._source.files.files:
            if fingerprints.changed(file.path):
                raise DataError(f"{file.path}: changed while it was read; prepare again when it is whole")

    def _prepared(self, result: dict[str, Any], *, reused: bool) -> Prepared:
        path = skipped_path(self._spec.prefix)
        return Prepared(
            prefix=self._spec.prefix, stage=self._source.stage, kind=self._source.kind, reused=reused,
            skipped_file=path if result["skipped"] else None, **result,
        )  # fmt: skip


def _numbers(writer: DocumentWriter, seconds: float) -> str:
    rate = writer.tokens / max(seconds, 1e-9)
    return f"MB  {writer.documents:,} documents  {writer.tokens:,} tokens  {rate:,.0f} tokens/s"
