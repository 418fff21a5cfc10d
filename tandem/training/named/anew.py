"""A run that is made anew (`--fresh`): what it made before goes, and may be nothing that it needs. Free of torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tandem.errors import UsageError
from tandem.training.alone import require_unshared
from tandem.training.checkpoints.state import LATEST
from tandem.training.named.weights import CHECKPOINT
from tandem.training.settings.run import Run


def require_spared(run: Run) -> None:
    """Refuse to throw away what the run is to begin from, or what other hosts have.

    Raises:
        UsageError: It goes on from its own checkpoints, reads something that would be gone, or shares its folder.
    """
    require_unshared(run.paths.checkpoints, run.launch.nodes)
    if run.names_its_own or (run.resume.load == 2 and run.resume.checkpoint is None):
        raise UsageError(
            f"{run.paths.checkpoints}: --fresh throws away the checkpoints that the run shall go on from; leave it "
            "out, or begin anew with CKPT_LOAD_TYPE=1 and without USER_CONVERTED_CKPT_PATH"
        )
    read = (run.resume.checkpoint, run.paths.weights, run.paths.tokenizer, run.paths.prepared, run.paths.data)
    if lost := next((path for path in read if path and _is_made_by(run, path)), None):
        raise UsageError(
            f"{lost}: --fresh throws it away, and the run reads it; leave --fresh out, set another OUTPUT_SAVE_DIR, or "
            "copy it to a place of its own"
        )


def clear(run: Run) -> None:
    """Remove what this run made; whatever else is in its folders stays."""
    own, logs = run.paths.checkpoints, run.paths.logs
    for path in (*own.glob("iter_*"), run.exported, run.adapter):
        shutil.rmtree(path, ignore_errors=True)
    for path in (own / LATEST, run.mark, *(logs / f"{name}.jsonl" for name in ("metrics", "retaken", "guard"))):
        path.unlink(missing_ok=True)


def _is_made_by(run: Run, path: Path) -> bool:
    """Whether a path is one of the run's checkpoints or what it exports, or lies in one."""
    own, place = (Path(os.path.realpath(one)) for one in (run.paths.checkpoints, path))  # also of links in a circle
    if place == own or not place.is_relative_to(own):
        return False
    name = place.relative_to(own).parts[0]
    return bool(CHECKPOINT.fullmatch(name)) or name in (run.exported.name, run.adapter.name)
