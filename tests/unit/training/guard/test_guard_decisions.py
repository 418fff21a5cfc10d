"""The guard's decisions apart from a trainer: all ranks the same, and a journal that survives its reading."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tandem.curves.judge import Kind
from tandem.curves.trend import WINDOW
from tandem.errors import DataError
from tandem.parallel.collectives import ProcessGroup
from tandem.parallel.place import Place
from tandem.parallel.world import World
from tandem.training.checkpoints.state import TrainState
from tandem.training.guard.guard import Guard, Outcome, remember
from tandem.training.guard.journal import Action, Event, Journal, read_events
from tandem.training.settings.config import GuardConfig

STATE = TrainState(step=40, consumed_samples=160, losses=[2.0] * 40, grad_norms=[1.0] * 40)


def event(position: int, action: Action, step: int, back_to: int | None = None) -> Event:
    return Event(step=step, position=position, next_position=position + 4, action=action, back_to=back_to,
                 verdict=Kind.SPIKE, loss=9.0, grad_norm=1.0, why="a reason")  # fmt: skip


@pytest.mark.parametrize(
    ("own", "action"),
    [([2.0, 2.1], Action.UPDATE), ([2.0, math.nan], Action.SKIP), ([math.inf, 2.0], Action.SKIP),
     ([2.0, 9.0], Action.ROLLBACK)],
)  # fmt: skip
def test_what_one_rank_sees_all_ranks_decide(own: list[float], action: Action, tmp_path: Path) -> None:
    def decide(rank: int) -> Action:
        group = ProcessGroup(torch.device("cpu"), rank, 2)
        group.meet(str(tmp_path / "file"))
        group.join()
        loss = float(group.all_reduce(torch.tensor([own[rank]]))) / 2
        guard = Guard(GuardConfig(on_nan="skip", on_spike="rollback"))
        return guard.decide(STATE, Outcome(loss=loss, grad_norm=1.0, samples=4), lambda: 30)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(decide, range(2))) == [action] * 2


def test_a_norm_alone_is_enough() -> None:
    notes: list[str] = []
    guard = Guard(GuardConfig(on_spike="skip"), note=notes.append)
    assert guard.decide(STATE, Outcome(loss=2.0, grad_norm=9.0, samples=4), lambda: None) is Action.SKIP
    assert notes == [
        "step 41: loss 2 with gradient norm 9 (1 was expected, 4 at most) is a spike; "
        "no update, samples 160 to 163 are left out"
    ]


def test_no_more_is_remembered_than_is_judged_by() -> None:
    state = STATE
    for number in range(WINDOW):
        losses, grad_norms = remember(state, Outcome(loss=float(number), grad_norm=0.5, samples=4))
        state = TrainState(losses=losses, grad_norms=grad_norms)
    assert state.losses == [float(number) for number in range(WINDOW)]
    assert state.grad_norms == [0.5] * WINDOW


def of(path: Path, run: str = "ours", rank: int = 0, note: Callable[[str], None] = print) -> Journal:
    return Journal.of(path, run, World(place=Place(rank=rank)), note)


def test_a_journal_forgets_what_is_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "guard.jsonl"
    journal = of(path)
    early, back, late = event(8, Action.SKIP, 3), event(40, Action.ROLLBACK, 10, 5), event(60, Action.SKIP, 9)
    for each in (early, back, late):
        journal.append(each)
    early, back, late = journal.events
    assert {each.run for each in journal.events} == {"ours"}
    assert (journal.skips(9), journal.skips(3), journal.rollbacks(5)) == (1, 0, 1)
    assert of(path).events == [early, back, late]
    assert of(path).resume(5, 20) == 44
    assert read_events(path) == [early, back]
    assert of(path).resume(4, 16) == 16
    assert read_events(path) == [early]
    assert of(path, rank=1).resume(0, 0) == 0
    assert read_events(path) == [early]


def test_a_broken_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "guard.jsonl"
    path.write_text('{"step": 3}\n')
    with pytest.raises(DataError, match=r"guard\.jsonl: holds a line that is no event of the guard"):
        of(path)


def test_what_another_run_has_left_out_is_nothing_to_this_one(tmp_path: Path) -> None:
    path = tmp_path / "guard.jsonl"
    of(path).append(event(8, Action.SKIP, 3))
    other = of(path, "theirs", note=lambda note: None)
    other.append(event(40, Action.ROLLBACK, 10, 5))
    assert of(path, "theirs").resume(5, 20) == 44
    notes: list[str] = []
    assert of(path, note=notes.append).resume(5, 20) == 20
    assert notes == [f"{path}: 1 of 1 lines are another run's, and are removed"]
    assert read_events(path) == [], "nor is it in the picture"
