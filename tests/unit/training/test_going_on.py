"""A run that goes on: what it takes again must come to what was logged, and it may be made longer."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from marred_batches import LEARNABLE, Marred, decoder
from recording import Recording, StoppedError, StoppingAt, tell_to_stop
from safetensors.torch import load_file

from tandem.errors import CheckpointError
from tandem.training.checkpoints.lengthening import LENGTHENED
from tandem.training.data.batch import Batch, Batches
from tandem.training.inputs import Inputs
from tandem.training.progress import StepReport
from tandem.training.settings.config import StageConfig
from tandem.training.stage import Stage, train
from tandem.training.watch.metrics import as_line, read_metrics
from tandem.training.watch.retaken import Logged, Retaken

STAGE = {"steps": 12, "seq_length": 16, "global_batch": 4, "micro_batch": 2, "lr": 0.01, "min_lr": 0.001,
         "warmup_steps": 2, "save_every": 4}  # fmt: skip


class Changed:
    """The learnable samples, but for one token."""

    def __init__(self, sample: int) -> None:
        self._sample = sample

    def at(self, position: int, count: int) -> Batch:
        batch = LEARNABLE.at(position, count)
        if position <= self._sample < position + count:
            batch.tokens[self._sample - position, 5] += 1
        return batch


def go(folder: Path, progress: Recording | None = None, batches: Batches = LEARNABLE, **changes: Any) -> Inputs:
    config = StageConfig(**STAGE | changes)
    inputs = {"seed": 0, "stage": config.model_dump(mode="json", exclude={"guard", "save_every"})}
    stage = Stage(name="pretrain", title="", config=config, folder=folder, inputs=inputs)
    return train(stage, decoder(), batches, progress or Recording())


def broken(folder: Path, step: int, batches: Batches = LEARNABLE, **changes: Any) -> None:
    """A run that was killed after a step."""
    with pytest.raises(StoppedError):
        go(folder, StoppingAt(step), batches, **changes)


def weights(folder: Path, step: int = 12) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"iter_{step:07d}" / "rank_00000.safetensors")


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def lines(folder: Path, name: str = "retaken") -> list[int]:
    return [report.step for report in read_metrics(folder / f"{name}.jsonl")]


def test_steps_that_are_taken_again_come_to_what_was_logged(tmp_path: Path) -> None:
    broken(tmp_path, 7)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    progress = Recording()
    go(tmp_path, progress)
    again = "steps 5 to 7 were taken again, and their losses are the ones that were logged (largest difference 0)"
    assert progress.notes.count(again) == 1
    assert lines(tmp_path) == []
    assert lines(tmp_path, "metrics") == list(range(1, 13))


def test_a_run_in_order_has_nothing_to_compare(tmp_path: Path) -> None:
    progress = Recording()
    go(tmp_path, progress)
    go(tmp_path, progress)
    assert not any("taken again" in note for note in progress.notes)
    assert not (tmp_path / "retaken.jsonl").exists()


def test_data_that_changed_behind_the_checkpoint_are_noticed_before_they_are_learnt(tmp_path: Path) -> None:
    broken(tmp_path, 7)
    for _ in range(2):  # however often it is tried
        with pytest.raises(
            CheckpointError, match=r"^step 6 is taken again, and comes to a loss of .* were logged: the data, .*retaken"
        ):
            go(tmp_path, batches=Changed(22))
        assert lines(tmp_path) == [5, 6, 7]
    assert not (tmp_path / "checkpoints" / "iter_0000008").exists()
    (tmp_path / "retaken.jsonl").unlink()
    go(tmp_path, batches=Changed(22))


def test_what_was_logged_outlives_a_second_interruption(tmp_path: Path) -> None:
    broken(tmp_path, 7)
    broken(tmp_path, 5)
    with pytest.raises(CheckpointError, match="step 7 is taken again"):
        go(tmp_path, batches=Changed(25))


def drifted(folder: Path, *drift: float) -> None:
    """Let steps from the fifth on be logged with other losses, by so much of them."""
    by = dict(enumerate(drift, 5))
    reports = read_metrics(folder / "metrics.jsonl")
    changed = (replace(one, loss=one.loss * (1 + by.get(one.step, 0.0))) for one in reports)
    (folder / "metrics.jsonl").write_text("".join(map(as_line, changed)))


@pytest.mark.parametrize(("drift", "refused"), [((1e-7, 1e-5, 2e-3), None), ((1e-7, 1e-3), 6), ((1e-7, 1e-5, 0.1), 7)])
def test_what_is_allowed_grows_with_the_differences_so_far(
    drift: tuple[float, ...], refused: int | None, tmp_path: Path
) -> None:
    broken(tmp_path, 7)
    drifted(tmp_path, *drift)
    progress = Recording()
    with nullcontext() if refused is None else pytest.raises(CheckpointError, match=f"^step {refused} is taken again"):
        go(tmp_path, progress)
    assert ("drift by rounding from the ones that were logged" in " ".join(progress.notes)) == (refused is None)


def test_differences_so_far_are_known_to_a_run_that_is_stopped_again(tmp_path: Path) -> None:
    broken(tmp_path, 7)
    drifted(tmp_path, 1e-6, 5e-4)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, StoppingAt(5, tell_to_stop))
    assert lines(tmp_path) == [5, 6, 7]
    progress = Recording()
    go(tmp_path, progress)
    assert any(note.startswith("steps 6 to 7 were taken again, and their losses drift by") for note in progress.notes)
    assert lines(tmp_path) == []


def test_a_run_made_longer_and_stopped_again_is_not_compared_with_the_shorter_one(tmp_path: Path) -> None:
    broken(tmp_path, 7)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, StoppingAt(5, tell_to_stop), steps=20)
    progress = Recording()
    go(tmp_path, progress, steps=20)
    assert any("steps before have learnt otherwise than those in retaken.jsonl" in note for note in progress.notes)


def test_the_log_of_another_run_is_not_compared(tmp_path: Path) -> None:
    broken(tmp_path / "one", 7)
    broken(tmp_path / "other", 7, lr=0.02)
    shutil.copy(tmp_path / "other" / "metrics.jsonl", tmp_path / "one")
    progress = Recording()
    go(tmp_path / "one", progress)
    said = f"{tmp_path / 'one' / 'metrics.jsonl'}: has step 4 otherwise than the checkpoint, so it is another run's or "
    assert any(note.startswith(said) for note in progress.notes), progress.notes
    assert not (tmp_path / "one" / "retaken.jsonl").exists()


@pytest.mark.parametrize("broken_number", ["loss", "grad_norm"])
def test_what_is_no_number_is_not_what_was_logged(broken_number: str) -> None:
    logged = Logged(step=5, consumed_samples=20, lr=0.1, loss=2.0, grad_norm=1.0)
    with pytest.raises(CheckpointError, match="step 5 is taken again"):
        Retaken([replace(logged, **{broken_number: float("inf")})], tolerance=0.1).compare(logged)


def test_lines_that_cannot_be_emptied_end_no_run(tmp_path: Path) -> None:
    broken(tmp_path, 7)

    class Obstructed(Recording):
        def step(self, report: StepReport) -> None:
            super().step(report)
            if report.step == 6:
                (tmp_path / "retaken.jsonl").unlink()
                (tmp_path / "retaken.jsonl").mkdir()

    go(tmp_path, Obstructed())
    assert (tmp_path / "checkpoints" / "iter_0000012").is_dir()


def test_other_samples_are_not_compared(tmp_path: Path) -> None:
    marred = Marred(poisoned=[21])
    broken(tmp_path, 7, marred, guard={"on_nan": "skip"})
    progress = Recording()
    go(tmp_path, progress, marred, guard={"on_nan": "rollback"})
    assert any(
        note.startswith("steps 5 to 7 were taken again, but 2 of them with other samples") for note in progress.notes
    )
    assert lines(tmp_path) == []


def test_a_run_made_longer_is_one_that_was_as_long_from_the_beginning(tmp_path: Path) -> None:
    go(tmp_path / "whole", schedule="constant")
    go(tmp_path / "parts", schedule="constant", steps=6)
    progress = Recording()
    made_from = go(tmp_path / "parts", progress, schedule="constant")
    assert [report.step for report in progress.reports] == [7, 8, 9, 10, 11, 12]
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert made_from[LENGTHENED] == [{"after": 6, "before": 6, "steps": 12}]
    assert go(tmp_path / "parts", schedule="constant") == made_from


def test_a_schedule_that_ends_later_is_said(tmp_path: Path) -> None:
    broken(tmp_path, 7)
    progress = Recording()
    go(tmp_path, progress, steps=20)
    longer = "made longer after step 4: 20 steps, not 12; the schedule (cosine) ends at step 20, so the learning rate "
    assert any(note.startswith(f"{longer}of step 5 is 0.00939") for note in progress.notes), progress.notes
    assert any("5 to 7 were taken again, but 2 of them" in note for note in progress.notes)
    assert progress.reports[-1].step == 20
    assert progress.reports[-1].lr == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 8}, r"other inputs: stage\.steps was 12, now 8; go back"),
        ({"steps": 20, "lr": 0.02}, r"stage\.lr was 0\.01, now 0\.02; stage\.steps was 12, now 20"),
        ({"steps": 20, "warmup_steps": 5}, "with 20 steps and not 12 the warm-up has 5 and not 2, and step 4 is in it"),
    ],
)
def test_what_is_more_than_longer_is_another_run(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    broken(tmp_path, 5)
    with pytest.raises(CheckpointError, match=message):
        go(tmp_path, **changes)
