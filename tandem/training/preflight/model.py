"""The model folder of a named model's run: every tensor by name and shape, the dtype, and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from tandem.catalogue.drawing import size_text
from tandem.catalogue.generation import read_generation_defaults
from tandem.errors import CheckpointError
from tandem.model.examination import Examination, examine, find_tokenizer
from tandem.model.folder import own_dtype
from tandem.model.verdict import MOST_SHOWN
from tandem.parallel.world import World
from tandem.training.named.begin import base_of
from tandem.training.named.weights import config_of, remarks_on, weights_of
from tandem.training.preflight.finding import Remark, good, note, problem
from tandem.training.settings.run import Run


def look_at_model(run: Run) -> Iterator[Remark]:
    """Whether it is whole and the named model's kind; no weight is read.

    Raises:
        CheckpointError: The weights are to come from another run, which has none.
        ModelFolderError: The folder cannot be used.
    """
    folder = weights_of(run)
    config = config_of(run, folder)
    read_generation_defaults(run.paths.weights)
    if _is_drawn(run):
        tokenizer = find_tokenizer(run.paths.tokenizer, config)
        yield good(f"{folder}: its shape is taken, with random weights; {tokenizer.file} of {tokenizer.ids:,} ids")
    else:
        yield from _weights(run, examine(folder, run.paths.tokenizer))
    for remark in remarks_on(run):
        yield note(remark)


def _is_drawn(run: Run) -> bool:
    """Whether no weights are read; what a run goes on from says so, and is looked at by itself."""
    if run.resume.load == 2:
        with suppress(CheckpointError):
            return base_of(run, World()).is_random
    return run.resume.load == 0


def _weights(run: Run, found: Examination) -> Iterator[Remark]:
    folder = weights_of(run)
    for fault in found.faults[:MOST_SHOWN]:
        named = any(str(place) in fault for place in (folder, run.paths.tokenizer))
        yield problem(fault if named else f"{folder}: {fault}")
    if len(found.faults) > MOST_SHOWN:
        yield problem(
            f"{folder}: {len(found.faults) - MOST_SHOWN} more faults; `tandem model show {folder}` lists them"
        )
    if found.faults or found.tokenizer is None:
        return
    own_dtype(folder)
    yield good(
        f"{folder}: {found.tensors} tensors, {size_text(found.stored_bytes)} in {', '.join(found.dtypes)}, every one "
        f"that is needed; {found.tokenizer.file} of {found.tokenizer.ids:,} ids fits"
    )
