"""Two ranks of the real loop: what harms one is decided by both, and one that hangs is named by the other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from marred_batches import Without, decoder

from tandem.training.data.batch import Batches
from tandem.training.guard.diagnosis import HUNG, collect
from tandem.training.guard.journal import Action, read_events
from tandem.training.progress import Silence
from tandem.training.settings.config import StageConfig
from tandem.training.stage import Stage, train
from tandem.training.watch.metrics import read_metrics

STAGE = {"steps": 8, "seq_length": 16, "global_batch": 4, "micro_batch": 2, "lr": 0.01, "min_lr": 0.001,
         "warmup_steps": 2, "save_every": 2}  # fmt: skip
PROGRAM = """
    import sys, threading
    from pathlib import Path
    import torch
    from marred_batches import Marred, decoder
    from test_guarded_ranks import stage
    from tandem.parallel.place import Place
    from tandem.parallel.world import joined
    from tandem.training.stage import train
    from tandem.training.progress import Silence

    folder, rank = Path(sys.argv[1]), int(sys.argv[2])

    class NeverComing(Marred):
        def at(self, position, count):
            if position >= 36 and rank == 1:
                threading.Event().wait()
            return super().at(position, count)

    place = Place(rank=rank, ranks=2, local_rank=rank, meeting=f"file:{folder}/meeting")
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
def test_ranks_decide_together_and_name_the_one_that_hangs(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=environment) for rank in range(2)
    ]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [HUNG, HUNG], told

    (event,) = read_events(tmp_path / "guard.jsonl")
    assert (event.action, event.step, event.back_to) == (Action.ROLLBACK, 4, 2)
    (tmp_path / "alone").mkdir()
    alone = losses(tmp_path / "alone", Without(8, 16))[:7]
    together = losses(tmp_path)
    assert len(together) == 7
    assert max(abs(a - b) / a for a, b in zip(alone, together, strict=True)) < 1e-5

    diagnosis = collect(tmp_path / "plog")
    assert diagnosis is not None
    assert diagnosis.culprits == [1]
    assert "rank 0: step 8, for " in told[0]
    assert " in all_reduce;" in told[0]
    assert "called from _share, " in str(diagnosis.reports[1])
