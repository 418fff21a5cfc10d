"""Where a named model's run goes on, and whether it may: nobody works there, and nothing else was trained there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tandem.parallel.world import World
from tandem.training.alone import at_work
from tandem.training.checkpoints.folder import CheckpointFolder
from tandem.training.checkpoints.lengthening import in_words
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.data.sample import Sample
from tandem.training.inputs import Inputs
from tandem.training.named.anew import require_spared
from tandem.training.named.begin import Base, base_of
from tandem.training.named.data import data_there
from tandem.training.named.identity import finished, identity_of, made_before, require_same_settings
from tandem.training.named.origin import origin_of
from tandem.training.named.run import own_places
from tandem.training.named.stage import open_batches
from tandem.training.preflight.data import is_prepared
from tandem.training.preflight.finding import Remark, good, note, problem
from tandem.training.settings.config import StageConfig
from tandem.training.settings.run import Run


def look_at_work(run: Run) -> Iterator[Remark]:
    """Whether another process trains there."""
    for place in own_places(run):
        if other := at_work(place):
            yield problem(f"{place}: {other} trains there; wait for it, or set another OUTPUT_SAVE_DIR")


def look_at_checkpoints(run: Run, sample: Callable[[], Sample], *, fresh: bool) -> Iterator[Remark]:
    """Where the run begins.

    Args:
        run: What shall be done.
        sample: Reads the first rows of the raw data.
        fresh: Whether its own checkpoints are to be thrown away first.

    Raises:
        CheckpointError: There are checkpoints or an export of other inputs, or none where it must go on.
        UsageError: As `require_spared`.
    """
    own = run.paths.checkpoints
    if fresh:
        require_spared(run)
        yield good(f"{own}: begins anew; what the run has made before is thrown away")
        return
    before, base = made_before(run), base_of(run, World())
    base.require_usable()
    folder = before.checkpoints.path
    step = CheckpointFolder(folder).latest()
    if step is None and before.exported_from is None:
        yield good(f"{own}: begins at step 0")
    elif is_prepared(run, sample):
        yield from _goes_on(run, base, folder, step)
    else:
        require_same_settings(run)
        yield note(f"{folder}: goes on from step {step} if the data, which is prepared first, comes out as it was")


def _goes_on(run: Run, base: Base, folder: Path, step: int | None) -> Iterator[Remark]:
    data = data_there(run)
    config = run.stage_config(open_batches(run, data).samples)
    inputs = identity_of(run, data.key, config, base.model, base.begins_from)
    if finished(run).is_it(inputs):
        yield note(f"{run.exported}: is there, from the same inputs; the run would train nothing")
        return
    origin_of(run)
    if step is not None:
        yield from goes_on(folder, step, inputs, config)


def goes_on(folder: Path, step: int, inputs: Inputs, config: StageConfig) -> Iterator[Remark]:
    """That a run may go on from a checkpoint, and what it means where it is made longer.

    Raises:
        CheckpointError: It was made from other inputs, or is damaged.
    """
    longer = CheckpointStore(folder, inputs, keep_last=1).require_same_inputs(step)
    yield good(f"{folder}: goes on from step {step}")
    if longer is not None:
        yield note(in_words(longer, config))
