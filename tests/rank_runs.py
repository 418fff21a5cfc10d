"""Runs of a small model on forked ranks, stopped, killed at points that are counted and not waited for, and resumed.

A point is a write to the run's checkpoints or to its log, one of a checkpoint's words among the ranks, or a place
inside a step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from forked_ranks import forked
from rank_suite import GLOBAL_BATCH, LENGTH, VOCABULARY, Conversations
from recording import Recording, StoppingAt, tell_to_stop
from safetensors.torch import load_file, save_file

from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.errors import TandemError
from tandem.model.random_weights import random_decoder
from tandem.model.skeleton import bare
from tandem.parallel.place import Place
from tandem.parallel.world import GlooTalk, Soliloquy, World, joined
from tandem.training.adapters.lora import apply_lora, fill_factors
from tandem.training.checkpoints import store
from tandem.training.compute.gathering import collected
from tandem.training.compute.loss import LossModel
from tandem.training.settings.config import LoraConfig, StageConfig
from tandem.training.stage import Stage, train
from tandem.training.watch.growing import GrowingFile
from tandem.training.watch.metrics import read_metrics

WRITES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
STEPS = 6
LORA = LoraConfig(rank=2)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run."""

    folder: Path
    ranks: int = 2
    lora: bool = False
    model: str = "llama3.2-1b"
    stop_after: int | None = None
    """A step after which rank 1, or the only one, is told to stop."""
    victims: tuple[int, ...] = ()
    """Ranks that are killed."""
    point: int | None = None
    """At which of their points."""


class Points:
    """Counts the points of this rank, and kills it at one of them."""

    def __init__(self, folder: Path, fatal: int | None) -> None:
        self.names: list[str] = []
        self._watched = re.compile(re.escape(str(folder)) + r"/(checkpoints|\.?(metrics|retaken)\.jsonl)")
        self._fatal = fatal

    def watch(self) -> None:
        sys.addaudithook(self._audit)
        self._before(World, "total")
        self._before(torch.optim.AdamW, "step")
        self._before(LossModel, "forward")
        self._before(store, "read_shards")
        self._before(GrowingFile, "append")
        for talk in (GlooTalk, Soliloquy):
            self._before(talk, "gather")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WRITES and arguments and (found := self._watched.match(str(arguments[0]))):
            self.reach(f"{event} {found[1]}{found.string[found.end() :]}")

    def _before(self, owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        @wraps(original)
        def reached(*arguments: Any, **options: Any) -> Any:
            self.reach(name)
            return original(*arguments, **options)

        setattr(owner, name, reached)

    def reach(self, name: str) -> None:
        self.names.append(name)
        if self._fatal is not None and len(self.names) == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def play(plan: Plan) -> list[int]:
    """Exit codes of all ranks; what each met is in `<folder>/points.<rank>.json`, rank 0's result beside it."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    return forked(plan.ranks, plan.folder / "meeting", partial(_work, plan))


def warm_up(folder: Path) -> None:
    """Import what a run imports on its way, and leave no thread behind: what is forked has only one."""
    torch.set_num_threads(1)
    plan = Plan(folder=folder, ranks=1)
    train(_stage(plan, World()), _decoder(plan.model, lora=False), Conversations(packed=False), Recording())


def _work(plan: Plan, place: Place) -> int:
    rank = place.rank
    points = Points(plan.folder, plan.point if rank in plan.victims else None)
    progress = StoppingAt(plan.stop_after if rank == 0 else None, tell_to_stop)
    with joined(place, torch.device("cpu")) as world:
        points.watch()
        whole = _decoder(plan.model, lora=plan.lora)
        decoder = bare(whole.config)
        if plan.lora:
            apply_lora(decoder, LORA, seed=0)
        try:
            train(_stage(plan, world), decoder, Conversations(packed=False), progress,
                  lambda parts: fill_factors(parts, whole.named_parameters()))  # fmt: skip
            # One rank may be killed at its last words while another is here.
            parts = decoder.named_parameters()
            result = {name: collected(one, range(len(one)), world).contiguous() for name, one in parts}
        except KeyboardInterrupt:
            return 130
        except TandemError as error:
            (plan.folder / f"error.{rank}.txt").write_text(str(error))
            return 1
        if world.leads:
            save_file(result, plan.folder / "result.safetensors")
            (plan.folder / "steps.json").write_text(json.dumps([report.step for report in progress.reports]))
            (plan.folder / "notes.json").write_text(json.dumps(progress.notes))
        (plan.folder / f"points.{rank}.json").write_text(json.dumps(points.names))
    return 0


def _stage(plan: Plan, world: World) -> Stage:
    config = StageConfig(steps=STEPS, seq_length=LENGTH, global_batch=GLOBAL_BATCH, micro_batch=2, lr=1e-4, min_lr=1e-5,
                         warmup_steps=1, save_every=2, keep_last=2)  # fmt: skip
    return Stage(name="pretrain", title="ranks", config=config, folder=plan.folder, inputs={}, world=world)


def _decoder(model: str, *, lora: bool) -> Any:
    small = shrink(MODELS[model].config, SmallShape(layers=2, vocab=VOCABULARY))
    decoder = random_decoder(small, torch.float32, 0)
    if not lora:
        return decoder.unfreeze()
    apply_lora(decoder, LORA, seed=0)
    return decoder


@dataclass(frozen=True)
class Result:
    """What a run that ended well left."""

    weights: dict[str, bytes]
    losses: list[tuple[int, float]]
    steps: list[int]
    """That its last process took."""

    @classmethod
    def of(cls, folder: Path) -> Result:
        weights = {name: one.numpy().tobytes() for name, one in load_file(folder / "result.safetensors").items()}
        losses = [(report.step, report.loss) for report in read_metrics(folder / "metrics.jsonl")]
        return cls(weights, losses, json.loads((folder / "steps.json").read_text()))


def kill_everywhere(
    base: Path, ranks: int, victims: tuple[int, ...], every: int, *, again: bool = False
) -> Iterator[dict[str, Any]]:
    """Kill at one point after the other, and go on each time; yields what came of it.

    Args:
        base: Empty.
        ranks: How many train.
        victims: Of these, who is killed.
        every: 1 for every point, 2 for every second one and so on.
        again: Kill a run that goes on from a kill in its last step, and has logged steps to take again.
    """
    assert play(Plan(folder=base / "calm", ranks=ranks)) == [0] * ranks
    calm = Result.of(base / "calm")
    if again:
        names = json.loads((base / "calm" / "points.0.json").read_text())
        last = max(number for number, name in enumerate(names, 1) if name == "step")
        play(Plan(folder=base / "killed", ranks=ranks, victims=(0,), point=last))
        _begin(base / "calm", base / "killed")
        assert play(Plan(folder=base / "calm", ranks=ranks)) == [0] * ranks
    names = json.loads((base / "calm" / f"points.{victims[0]}.json").read_text())
    for point in range(1, len(names) + 1, every):
        folder = base / str(point)
        _begin(folder, base / "killed")
        codes = play(Plan(folder=folder, ranks=ranks, victims=victims, point=point))
        latest = folder / "checkpoints" / store.LATEST
        named = int(latest.read_text()) if latest.exists() else 0
        again = play(Plan(folder=folder, ranks=ranks))
        result = Result.of(folder) if not any(again) else None
        yield {
            "point": names[point - 1],
            "killed": -signal.SIGKILL in codes,
            "codes": codes,
            # A survivor says that another is gone, and does not take it for an error of its own.
            "told": all(code <= 0 or (folder / f"error.{rank}.txt").exists() for rank, code in enumerate(codes)),
            "again": again,
            "named": named,
            "latest": int(latest.read_text()),
            "begin": result.steps[0] - 1 if result and result.steps else STEPS,
            "same": result is not None and (result.weights, result.losses) == (calm.weights, calm.losses),
        }
        shutil.rmtree(folder)


def _begin(folder: Path, killed: Path) -> None:
    """Put a folder in the state in which a run was killed, if one was."""
    if folder.exists():
        shutil.rmtree(folder)
    if killed.exists():
        shutil.copytree(killed, folder)


def main() -> None:
    """A line of JSON for each point: `python tests/rank_runs.py FOLDER RANKS VICTIM[,VICTIM] EVERY [again]`."""
    folder, ranks, victims, every, *again = sys.argv[1:]
    warm_up(Path(folder) / "warm")
    for found in kill_everywhere(
        Path(folder), int(ranks), tuple(map(int, victims.split(","))), int(every), again=bool(again)
    ):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
