"""The guard in real training: what it leaves out is as if it had never been there, also when the run was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from marred_batches import Marred, Without, decoder
from recording import Recording, StoppedError
from safetensors.torch import load_file

from tandem.errors import DivergenceError
from tandem.parallel.world import World
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.loss import LossModel
from tandem.training.data.batch import Batches
from tandem.training.guard.guard import Guard
from tandem.training.guard.hang import Unwatched
from tandem.training.guard.journal import Action, Journal, read_events
from tandem.training.loop import Trainer
from tandem.training.progress import StepReport
from tandem.training.settings.config import StageConfig
from tandem.training.watch.metrics import MetricsLog, read_metrics

STAGE = {"steps": 36, "seq_length": 16, "global_batch": 4, "micro_batch": 2, "lr": 0.01, "min_lr": 0.001,
         "warmup_steps": 2, "save_every": 10}  # fmt: skip


class StoppingAfter(Recording):
    """Breaks off so many steps after the first note."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def step(self, report: StepReport) -> None:
        super().step(report)
        self._left -= bool(self.notes)
        if self._left < 0:
            raise StoppedError


def train(
    folder: Path, batches: Batches, progress: Recording | None = None, watch: Unwatched | None = None, **guard: Any
) -> Recording:
    progress = progress or Recording()
    config = StageConfig(**STAGE | {"guard": guard})
    store = CheckpointStore(folder / "checkpoints", {}, config.keep_last)
    guarding = Guard(config.guard, Journal.of(folder / "guard.jsonl", "ours", World(), progress.note), progress.note)
    trainer = Trainer(LossModel(decoder()), batches, config, store, guard=guarding)
    trainer.resume()
    with MetricsLog(folder / "metrics.jsonl", trainer.state.step) as log:
        trainer.run(log, progress, watch)
    return progress


def result(folder: Path) -> tuple[dict[str, bytes], list[tuple[int, float, float]]]:
    tensors = load_file(folder / "checkpoints" / "iter_0000036" / "rank_00000.safetensors")
    weights = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return weights, [(each.step, each.loss, each.grad_norm) for each in read_metrics(folder / "metrics.jsonl")]


def actions(folder: Path) -> list[tuple[int, Action]]:
    return [(event.step, event.action) for event in read_events(folder / "guard.jsonl")]


def test_a_batch_that_is_left_out_was_never_there(tmp_path: Path) -> None:
    progress = train(tmp_path / "a", Marred(poisoned=[50]), on_nan="skip")
    train(tmp_path / "b", Without(48, 52))
    assert result(tmp_path / "a") == result(tmp_path / "b")
    assert actions(tmp_path / "a") == [(13, Action.SKIP)]
    assert progress.notes == [
        "step 13: loss nan with gradient norm nan is no number; no update, samples 48 to 51 are left out"
    ]
    assert not (tmp_path / "b" / "guard.jsonl").exists()


@pytest.mark.parametrize(
    ("marred", "guard", "step"),
    [
        (Marred(poisoned=[99]), {"on_nan": "rollback"}, 25),
        (Marred(wild=range(96, 100)), {"on_spike": "rollback"}, 25),
    ],
)
def test_after_a_rollback_the_range_was_never_there(
    marred: Marred, guard: dict[str, str], step: int, tmp_path: Path
) -> None:
    progress = train(tmp_path / "a", marred, **guard)
    train(tmp_path / "b", Without(80, 100))
    assert result(tmp_path / "a") == result(tmp_path / "b")
    (event,) = read_events(tmp_path / "a" / "guard.jsonl")
    assert (event.action, event.step, event.back_to) == (Action.ROLLBACK, step, 20)
    assert (event.position, event.next_position) == (96, 100)
    assert progress.notes[0].endswith(
        "back to the checkpoint of step 20; what was trained on since, to sample 99, is left out"
    )


def test_going_back_is_given_the_time_of_loading(tmp_path: Path) -> None:
    class Watch(Unwatched):
        """Takes a rank for hung that goes back without having asked for time."""

        def __init__(self) -> None:
            self.allowances: list[float] = []

        def allowing(self, seconds: float) -> AbstractContextManager[None]:
            self.allowances.append(seconds)
            return nullcontext()

    without, with_rollback = Watch(), Watch()
    train(tmp_path / "a", Without(80, 100), watch=without)
    train(tmp_path / "b", Marred(poisoned=[99]), watch=with_rollback, on_nan="rollback")
    assert len(with_rollback.allowances) == len(without.allowances) + 2  # it is written, and loaded


@pytest.mark.parametrize("steps", [0, 4, 9])
def test_a_run_stopped_after_a_rollback_goes_on_as_one_that_was_not(steps: int, tmp_path: Path) -> None:
    marred = Marred(poisoned=[99, 110, 111])
    train(tmp_path / "a", marred, on_nan="rollback")
    with pytest.raises(StoppedError):
        train(tmp_path / "b", marred, StoppingAfter(steps), on_nan="rollback")
    train(tmp_path / "b", marred, on_nan="rollback")
    assert result(tmp_path / "a") == result(tmp_path / "b")
    assert read_events(tmp_path / "a" / "guard.jsonl") == read_events(tmp_path / "b" / "guard.jsonl")
    assert actions(tmp_path / "a") == [(25, Action.ROLLBACK), (23, Action.ROLLBACK)]


def test_a_run_taken_back_by_hand_decides_the_same_again(tmp_path: Path) -> None:
    marred = Marred(poisoned=[50, 99])
    train(tmp_path, marred, on_nan="skip")
    before, events = result(tmp_path), read_events(tmp_path / "guard.jsonl")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("30\n")
    train(tmp_path, marred, on_nan="skip")
    assert (result(tmp_path), read_events(tmp_path / "guard.jsonl")) == (before, events)
    assert len(events) == 2


def test_without_a_checkpoint_the_batch_is_left_out(tmp_path: Path) -> None:
    progress = train(tmp_path / "a", Marred(poisoned=[9]), on_nan="rollback")
    train(tmp_path / "b", Without(8, 12))
    assert result(tmp_path / "a") == result(tmp_path / "b")
    assert "(there is no checkpoint to go back to)" in progress.notes[0]


def test_a_spike_is_noted_and_trained_on_by_default(tmp_path: Path) -> None:
    marred = Marred(wild=range(96, 100))
    progress = train(tmp_path / "a", marred)
    assert actions(tmp_path / "a") == [(25, Action.UPDATE)]
    assert progress.notes[0].endswith("noted, and samples 96 to 99 trained on")
    assert result(tmp_path / "a")[1][24][1] > 2


@pytest.mark.parametrize(
    ("poisoned", "guard", "match"),
    [
        ([50], {}, r"^step 13: loss nan .*is no number; training diverged at samples 48 to 51; .*guard\.on_nan: skip"),
        (
            range(48, 400),
            {"on_nan": "skip", "most": 3},
            r"^step 13: .*samples 60 to 63, after guard\.most \(3\) times of skip",
        ),
        (range(48, 400), {"on_nan": "rollback", "most": 2}, r"^step 11: .*samples 56 to 59, .*\(2\) times of rollback"),
    ],
)
def test_where_it_stops_it_names_step_loss_norm_and_samples(
    poisoned: Collection[int], guard: dict[str, Any], match: str, tmp_path: Path
) -> None:
    for _ in range(2):  # going on from the checkpoint comes to the same end
        with pytest.raises(DivergenceError, match=match):
            train(tmp_path, Marred(poisoned=poisoned), **guard)
        lines = [
            json.loads(line, parse_constant=_refuse) for line in (tmp_path / "guard.jsonl").read_text().split("\n")[:-1]
        ]
        assert (lines[-1]["action"], lines[-1]["loss"]) == ("stop", None)


def _refuse(constant: str) -> Callable[[], None]:
    raise AssertionError(f"{constant} is no JSON")
