"""One rank's part in whatever was started: it reads from a file what that is."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from tandem.parallel.device import DeviceName
from tandem.parallel.place import Place
from tandem.training import run
from tandem.training.job import Job
from tandem.training.launch.process_log import log_path, logged
from tandem.training.named.run import take_part as take_part_in_named
from tandem.training.progress import Progress
from tandem.training.settings.run import Run


def take_part(file: Path, progress: Progress, place: Place, device: DeviceName) -> None:
    """Train as one of the ranks.

    Args:
        file: A `Job` or a `Run` as JSON, as `launch/work.py` wrote it.
        progress: Is told by rank 0.
        place: This process among the ranks.
        device: What to train on.
    """
    work: Job | Run = TypeAdapter(Job | Run).validate_json(file.read_bytes())
    if place.rank:
        _take_part(work, progress, place, device)
        return
    launch = work.recipe.launch if isinstance(work, Job) else work.launch
    with logged(log_path(file.parent, launch.nodes, 0), progress) as told:
        _take_part(work, told, place, device)


def _take_part(work: Job | Run, progress: Progress, place: Place, device: DeviceName) -> None:
    if isinstance(work, Job):
        run.train_and_export(work, progress, place, device)
    else:
        take_part_in_named(work, progress, place, device)
