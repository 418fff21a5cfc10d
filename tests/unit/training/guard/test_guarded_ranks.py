"""Two ranks of the real loop: what harms one is decided by both, and one that hangs is named by the other."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path

import pytest
from marred_batches import Without, decoder

from tandem.errors import ProcessError
from tandem.training.data.batch import Batches
from tandem.training.guard.journal import Action, read_events
from tandem.training.launch.ranks import Hosts, run_ranks
from tandem.training.progress import Silence
from tandem.training.settings.config import StageConfig
from tandem.training.stage import Stage, train
from tandem.training.watch.metrics import read_metrics

STAGE = {"steps": 8, "seq_length": 16, "global_batch": 4, "micro_batch": 2, "lr": 0.01, "min_lr": 0.001,
         "warmup_steps": 2, "save_every": 2}  # fmt: skip
PROGRAM = """
    import os, sys, threading
    from pathlib import Path
    import torch
    from marred_batches import Marred, decoder
    from test_guarded_ranks import stage
    from tandem.parallel.place import Place
    from tandem.parallel.world import joined
    from tandem.training.stage import train
    from tandem.training.progress import Silence

    folder, place = Path(sys.argv[1]), Place.told(os.environ)

    class NeverComing(Marred):
        def at(self, position, count):
            if position >= 36 and place.rank == 1:
                threading.Event().wait()
            return super().at(position, count)

    with joined(place, torch.device("cpu")) as world:
        train(stage(folder, world=world), decoder(), NeverComing(poisoned=[15]), Silence())
"""


def stage(folder: Path, **more: object) -> Stage:
    config = StageConfig(**STAGE, guard={"on_nan": "rollback", "hang_after": 5.0})  # type: ignore[arg-type]
    return Stage(name="pretrain", title="", config=config, folder=folder, inputs={}, **more)  # type: ignore[arg-type]


def losses(folder: Path, batches: Batches | None = None) -> list[float]:
    if batches is not None:
        train(stage(folder), decoder(), batches, Silence())
    return [report.loss for report in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.full
def test_ranks_decide_together_and_name_the_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    with pytest.raises(ProcessError, match="the run hangs: rank 1 did not come to the collective") as hang:
        run_ranks(command, Hosts(ranks=2), tmp_path / "plog")

    (event,) = read_events(tmp_path / "guard.jsonl")
    assert (event.action, event.step, event.back_to) == (Action.ROLLBACK, 4, 2)
    (tmp_path / "alone").mkdir()
    alone = losses(tmp_path / "alone", Without(8, 16))[:7]
    together = losses(tmp_path)
    assert len(together) == 7
    assert max(abs(a - b) / a for a, b in zip(alone, together, strict=True)) < 1e-5

    assert re.search(r"rank 0: step 8, for \d+ s in all_reduce\n", str(hang.value))
    assert re.search(r"called from at, \S+/compute/share\.py:\d+", str(hang.value))
