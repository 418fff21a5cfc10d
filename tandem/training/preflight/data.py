"""The data of a named model's run: read as far as its first rows, or whole where it is prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tandem.catalogue.drawing import size_text
from tandem.training.alone import at_work
from tandem.training.data.batches import TokenBatches
from tandem.training.data.sample import Sample
from tandem.training.named.data import data_there, prepared_prefix
from tandem.training.named.stage import open_batches
from tandem.training.preflight.finding import Remark, counted, good, note
from tandem.training.settings.run import Run

PREPARED_BYTES = {"pretrain": 4, "sft": 12}
"""Of a token in prepared data, at most: its id, and of conversations its mask and its label."""


def look_at_data(run: Run, sample: Callable[[], Sample]) -> Iterator[Remark]:
    """Whether it can be read and is of a known kind, and how much there is.

    Args:
        run: What shall be done.
        sample: Reads the first rows of the raw data.

    Raises:
        DataError: It is broken, of no known kind, or too little.
        ModelFolderError: The tokenizer cannot be used.
    """
    if not is_prepared(run, sample):
        yield from _raw(run, sample())
        return
    there = data_there(run)
    batches = open_batches(run, there)
    steps = run.stage_config(batches.samples).steps
    yield good(f"{there.prefix}: is prepared; {batches.samples:,} samples of up to {run.training.seq_length:,} tokens, "
               f"{steps:,} steps of {run.training.global_batch:,} samples")  # fmt: skip


def is_prepared(run: Run, sample: Callable[[], Sample]) -> bool:
    """Whether nothing has to be prepared. Errors as `sample`."""
    return run.paths.prepared is not None or sample().prepared


def prepared_bytes(run: Run, found: Sample) -> int:
    """What the raw data will take at most when it is prepared."""
    return 0 if found.prepared else int(found.tokens * _times(found)) * PREPARED_BYTES[run.reads]


def _raw(run: Run, found: Sample) -> Iterator[Remark]:
    times, about = _times(found), "" if found.whole else "about "
    files = counted(found.files, "file")
    yield good(
        f"{run.paths.data}: {size_text(found.size)} in {files}; {about}{found.rows * times:,.0f} rows "
        f"({found.kind}), {about}{found.tokens * times:,.0f} tokens"
    )
    if found.skipped:
        yield note(f"of the first {found.rows:,} rows, these are skipped: {found.skipped}")
    if found.chat_template is not None:
        yield note(f"{run.paths.tokenizer}: has no chat template; conversations are worded by the template alpaca")
    if run.reads == "pretrain" and found.whole:
        TokenBatches(np.broadcast_to(np.uint8(0), found.tokens), run.training.seq_length, run.seed)
    if other := at_work(prepared_prefix(run)):
        yield note(f"{prepared_prefix(run)}: {other} prepares data there; the run waits for it")


def _times(found: Sample) -> float:
    """How often the rows that were read go into all."""
    return 1.0 if found.whole else found.size / found.read
