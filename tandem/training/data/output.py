"""What prepared data looks like on disk, and how it gets there whole.

    <prefix>_text_document.{bin,idx}                     pretraining: a document each, its end token included
    <prefix>_packed_input_ids_document.{bin,idx}         fine-tuning: a conversation each
    <prefix>_packed_labels_document.{bin,idx}            the same ids where they are learnt, -100 elsewhere
    <prefix>_packed_attention_mask_document.{bin,idx}    ones; other trainers ask for it
    <prefix>_skipped.jsonl                               rows that are not in it, if there are some
    <prefix>_prepared.json                               written last: what all this was made from

Names and layout are those of ModelLink's (MindSpeed-LLM's) `preprocess_data.py`: `packed` is a word of theirs and says
nothing of rows being joined. Labels stand under the ids they are, as there and in Hugging Face's trainers; whoever
trains shifts them by one.

Everything is written into a folder beside the prefix, and moved out of it file by file with the index of the ids last:
without that index nothing is read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from tandem.errors import DataError
from tandem.training.data.encoding import Encoded
from tandem.training.data.indexed import IndexedWriter, paths_of, token_type
from tandem.training.data.labels import IGNORED
from tandem.training.data.rows.kinds import Stage


def text_prefix(prefix: Path) -> Path:
    """Of the pair with texts."""
    return prefix.with_name(f"{prefix.name}_text_document")


def packed_prefix(prefix: Path, field: str) -> Path:
    """Of one of the three pairs with conversations: `input_ids`, `labels`, `attention_mask`."""
    return prefix.with_name(f"{prefix.name}_packed_{field}_document")


def skipped_path(prefix: Path) -> Path:
    """Of the side file."""
    return prefix.with_name(f"{prefix.name}_skipped.jsonl")


def mark_path(prefix: Path) -> Path:
    """Of the file that says that everything is there."""
    return prefix.with_name(f"{prefix.name}_prepared.json")


def pairs(prefix: Path, stage: Stage) -> list[Path]:
    """The prefixes of a stage's pairs; the first is published last, and everything is found through it."""
    fields = ("input_ids", "labels", "attention_mask")
    return [text_prefix(prefix)] if stage == "pretrain" else [packed_prefix(prefix, field) for field in fields]


def all_files(prefix: Path) -> list[Path]:
    """Every file that preparing may leave, the most telling ones first, so that removing them in order is safe."""
    every = [*pairs(prefix, "pretrain"), *pairs(prefix, "sft")]
    return [mark_path(prefix), *(path for pair in every for path in paths_of(pair)), skipped_path(prefix)]


@contextmanager
def work_folder(prefix: Path) -> Iterator[Path]:
    """An empty folder beside the prefix; what is in it when the block ends well replaces what was there before.

    Yields:
        The prefix to write under.

    Raises:
        DataError: The disk is full, or the folder may not be written to.
    """
    folder = prefix.with_name(f".{prefix.name}.preparing")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder / prefix.name
        for path in all_files(prefix):
            path.unlink(missing_ok=True)
        for path in reversed(all_files(folder / prefix.name)):
            if path.exists():
                path.replace(prefix.with_name(path.name))
    except OSError as error:
        raise DataError(
            f"{prefix}: cannot be written ({error.strerror or error}); free disk space there, or choose another place"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class DocumentWriter:
    """Writes encoded blocks of one stage.

    Args:
        prefix: To write under.
        stage: Which files.
        vocab_size: Decides how many bytes a token of a text takes.
        stack: Ends the writing.
    """

    def __init__(self, prefix: Path, stage: Stage, vocab_size: int, stack: ExitStack) -> None:
        self.documents = self.tokens = self.learnt = 0
        self._stage = stage
        dtype = token_type(vocab_size) if stage == "pretrain" else np.int32
        self._writers = [stack.enter_context(IndexedWriter(pair, dtype)) for pair in pairs(prefix, stage)]

    def add(self, encoded: Encoded) -> None:
        """Append the documents of a block."""
        lengths = encoded.lengths.tolist()
        columns = [encoded.ids]
        if self._stage == "sft":
            labels = np.where(True if encoded.learnt is None else encoded.learnt, encoded.ids, np.int32(IGNORED))
            columns += [labels, np.ones_like(encoded.ids)]
        for writer, values in zip(self._writers, columns, strict=True):
            writer.add(values, lengths)
        self.documents += len(lengths)
        self.tokens += len(encoded.ids)
        self.learnt += len(encoded.ids) if encoded.learnt is None else int(encoded.learnt.sum())


def sync_folder(folder: Path) -> None:
    """Have renames in a folder reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
