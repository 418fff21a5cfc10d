"""What is said of memory before a run begins."""

from __future__ import annotations

import time

import pytest
from tiny import TINY

from tandem.errors import UsageError
from tandem.training.plan import demand as demand_room
from tandem.training.plan.demand import Demand
from tandem.training.settings.config import Launch, StageConfig

GIB = 1 << 30


def demand(seq_length: int, *, packed: bool = True) -> Demand:
    step = StageConfig(steps=4, seq_length=seq_length, global_batch=4, micro_batch=2, lr=0.01, min_lr=0.001,
                       warmup_steps=1, save_every=2)  # fmt: skip
    return Demand.of(TINY, step, Launch(), "cpu", packed=packed)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_room, "memory_of", lambda device: (1 * GIB, 16 * GIB))
    monkeypatch.setattr(demand_room, "host_swap", lambda: 4 * GIB)


@pytest.mark.usefixtures("memory")
def test_of_what_is_sure_to_fit_nothing_is_said_at_once() -> None:
    asked = demand(512)
    began = time.process_time()
    asked.require_possible()
    assert not list(asked.remarks())
    assert time.process_time() - began < 0.1


@pytest.mark.usefixtures("memory")
def test_what_does_not_fit_is_said_with_what_would() -> None:
    asked = demand(40_000)
    asked.require_possible()
    (says,) = asked.remarks()
    assert f"needs {asked.need.plan.total / GIB:.2f} GiB" in says
    assert "this host has 1.00 free" in says
    assert "would fit: micro-batch 1" in says


@pytest.mark.usefixtures("memory")
def test_what_cannot_fit_is_refused_and_rows_that_may_be_shorter_are_not() -> None:
    with pytest.raises(UsageError, match=r"more than [\d.]+ GiB of memory, and this host has 20.00 in all; .*lora"):
        demand(60_000_000).require_possible()
    demand(60_000_000, packed=False).require_possible()
