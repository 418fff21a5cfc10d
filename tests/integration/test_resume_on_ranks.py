"""A run that was stopped or killed goes on as if nothing had been: on the same ranks bit for bit, on others closely."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rank_runs
import torch
from rank_runs import Plan, Result, play
from safetensors.torch import load_file

from tandem.training.checkpoints import store


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    rank_runs.warm_up(tmp_path_factory.mktemp("warm"))


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run as its `Plan` is, made once and not to be changed; one that shall stop is not at its end."""

    def played(**more: Any) -> Path:
        plan = Plan(folder=tmp_path_factory.mktemp("run"), **more)
        assert play(plan) == [130 if plan.stop_after else 0] * plan.ranks
        return plan.folder

    return cache(played)


def copied(run: Path, folder: Path) -> Path:
    """The same run, to be changed."""
    return Path(shutil.copytree(run, folder))


def far(ours: Path, theirs: Path) -> float:
    """Largest difference of two runs' weights."""
    one, other = (load_file(folder / "result.safetensors") for folder in (ours, theirs))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.full
@pytest.mark.parametrize("lora", [False, True])
def test_a_stopped_run_goes_on_exactly_on_any_number_of_ranks(run_of: Any, tmp_path: Path, *, lora: bool) -> None:
    check_resumes(run_of, tmp_path, [(1, 1), (2, 2), (3, 3), (2, 3), (3, 1), (1, 2)], lora=lora)


def test_a_stopped_run_goes_on_on_other_ranks(run_of: Any, tmp_path: Path) -> None:
    check_resumes(run_of, tmp_path, [(2, 2), (3, 2)], lora=True)


@pytest.mark.full
def test_biases_of_routers_go_on_exactly_too(run_of: Any, tmp_path: Path) -> None:
    check_resumes(run_of, tmp_path, [(1, 1), (2, 2), (3, 3), (2, 3), (3, 1), (1, 2)], model="deepseek-v3")


def check_resumes(run_of: Any, tmp_path: Path, changes: list[tuple[int, int]], **kind: Any) -> None:
    for before, after in changes:
        whole = run_of(ranks=after, **kind)
        folder = copied(run_of(ranks=before, stop_after=2, **kind), tmp_path / f"{before}-{after}")
        assert play(Plan(folder=folder, ranks=after, **kind)) == [0] * after
        ours, theirs = Result.of(folder), Result.of(whole)
        # Several ranks stop together, where they next speak: one step later.
        assert ours.steps == list(range(3 if before == 1 else 4, rank_runs.STEPS + 1))
        if before == after:
            assert (ours.weights, ours.losses) == (theirs.weights, theirs.losses)
        else:
            assert [step for step, _ in ours.losses] == [step for step, _ in theirs.losses]
            for (_, one), (_, other) in zip(ours.losses, theirs.losses, strict=True):
                assert one == pytest.approx(other, rel=1e-6)
            assert far(folder, whole) < 1e-6


def test_a_flipped_byte_of_any_rank_is_found_by_all(run_of: Any, tmp_path: Path) -> None:
    folder = copied(run_of(ranks=2, stop_after=2, lora=True), tmp_path / "run")
    part = folder / "checkpoints" / "iter_0000003" / "rank_00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    assert play(Plan(folder=folder, ranks=2, lora=True)) == [1, 1]
    for rank in (0, 1):
        said = (folder / f"error.{rank}.txt").read_text()
        assert f"{part}: is damaged" in said
        assert "to go on from step 2, write 2 into" in said


def test_frozen_weights_that_changed_are_noticed(run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(run_of(ranks=2, stop_after=2, lora=True), tmp_path / "run")
    original = rank_runs._decoder

    def changed(model: str, *, lora: bool) -> Any:
        decoder = original(model, lora=lora)
        with torch.no_grad():
            decoder.layers[0].attention.q.weight.mul_(1.5)
        return decoder

    monkeypatch.setattr(rank_runs, "_decoder", changed)
    assert play(Plan(folder=folder, ranks=2, lora=True)) == [1, 1]
    assert "are not those it was trained with" in (folder / "error.1.txt").read_text()


@pytest.mark.parametrize(("before", "after", "far"), [(2, 3, 1e-6), pytest.param(2, 2, 0.0, marks=pytest.mark.full)])
def test_ranks_that_were_killed_come_to_what_was_logged(
    run_of: Any, tmp_path: Path, before: int, after: int, far: float
) -> None:
    names = json.loads((run_of(ranks=before) / "points.0.json").read_text())
    last = [number for number, name in enumerate(names, 1) if name == "step"][-1]
    folder = tmp_path / "killed"
    assert play(Plan(folder=folder, ranks=before, victims=(0,), point=last))[0] == -signal.SIGKILL
    assert play(Plan(folder=folder, ranks=after)) == [0] * after
    (said,) = [note for note in json.loads((folder / "notes.json").read_text()) if "were taken again" in note]
    first = json.loads((folder / "steps.json").read_text())[0]
    assert said.startswith(f"steps {first} to 5 were taken again, and their losses are the ones that were logged")
    assert float(said.rpartition(" ")[2].rstrip(")")) <= far


def test_all_ranks_refuse_a_step_that_is_not_what_was_logged(run_of: Any, tmp_path: Path) -> None:
    folder = copied(run_of(ranks=2), tmp_path / "run")
    (folder / "checkpoints" / store.LATEST).write_text("4\n")
    log = folder / "metrics.jsonl"
    fields = [json.loads(line) for line in log.read_text().splitlines()]
    fields[-1]["loss"] += 0.01
    log.write_text("".join(json.dumps(line) + "\n" for line in fields))
    assert play(Plan(folder=folder, ranks=2)) == [1, 1]
    for rank in (0, 1):
        assert (folder / f"error.{rank}.txt").read_text().startswith("step 6 is taken again, and comes to a loss of")
    (folder / "checkpoints" / store.LATEST).write_text("release\n")
    assert play(Plan(folder=folder, ranks=2)) == [1, 1], "one looks at the pointer, and both hear what is wrong"
    for rank in (0, 1):
        assert "holds 'release' and no step" in (folder / f"error.{rank}.txt").read_text()


def killed(folder: Path, ranks: int, victims: str, every: int, *more: str) -> list[dict[str, Any]]:
    command = [sys.executable, rank_runs.__file__, str(folder), str(ranks), victims, str(every), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: list[dict[str, Any]]) -> None:
    assert sum(one["killed"] for one in found) >= 0.9 * len(found), "threads may take turns, but most points are met"
    for one in found:
        assert one["again"] == [0] * len(one["codes"]), one
        assert one["same"], one
        assert one["latest"] == rank_runs.STEPS, one
        assert one["told"], one
        assert one["begin"] >= one["named"], "what was named as the latest is never lost"
    assert {0, 2, 4} <= {one["begin"] for one in found if one["killed"]}


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("ranks", "victims"), [(1, "0"), (2, "0"), (2, "1"), (2, "0,1"), (3, "2")])
def test_a_kill_at_any_point_costs_the_steps_since_the_last_checkpoint_and_no_more(
    tmp_path: Path, ranks: int, victims: str
) -> None:
    found = killed(tmp_path, ranks, victims, 1)
    assert len(found) > 60, "every write of three checkpoints, every word, every part of a step"
    check(found)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_second_kill_at_any_write_of_the_log_loses_and_doubles_no_line(tmp_path: Path) -> None:
    found = killed(tmp_path, 1, "0", 1, "again")
    moves = [one["point"].partition(".jsonl")[0] for one in found if one["point"].startswith("os.rename .")]
    assert moves == ["os.rename .retaken", "os.rename .metrics", "os.rename .retaken"], "moved, cut, and emptied"
    assert all(one["killed"] and one["again"] == [0] and one["same"] for one in found), found
