"""Learning rates against those of transformers, which counts steps from 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import optimization

from tandem.training.compute.schedule import Schedule
from tandem.training.compute.sketch import bars, examples, svg

PEAK, MINIMUM, WARMUP, STEPS, DECAY = 1.0, 0.1, 10, 110, 30


def theirs(make: Callable[..., Any], **settings: Any) -> list[float]:
    """Learning rates of steps 1 to STEPS."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = make(optimizer, WARMUP, **settings)
    rates = []
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


@pytest.mark.parametrize(
    ("kind", "minimum", "expected"),
    [
        ("constant", 0.0, lambda: theirs(optimization.get_constant_schedule_with_warmup)),
        ("linear", 0.0, lambda: theirs(optimization.get_linear_schedule_with_warmup, num_training_steps=STEPS)),
        (
            "cosine",
            MINIMUM,
            lambda: theirs(
                optimization.get_cosine_with_min_lr_schedule_with_warmup,
                num_training_steps=STEPS,
                min_lr=MINIMUM,
            ),
        ),
        (
            "wsd",
            MINIMUM,
            lambda: theirs(
                optimization.get_wsd_schedule,
                num_decay_steps=DECAY,
                num_training_steps=STEPS,
                decay_type="1-sqrt",
                min_lr_ratio=MINIMUM,
            ),
        ),
    ],
)
def test_rates_are_those_of_transformers(kind: Any, minimum: float, expected: Callable[[], list[float]]) -> None:
    schedule = Schedule(kind=kind, peak=PEAK, minimum=minimum, warmup=WARMUP, steps=STEPS, decay=DECAY)
    rates = [schedule.at(step) for step in range(1, STEPS + 1)]
    # Their wsd warms up from the minimum, everything else from nothing.
    begin = WARMUP - 1 if kind == "wsd" else 0
    assert rates[begin:] == pytest.approx(expected()[begin:])


def test_a_schedule_is_drawn_as_it_is() -> None:
    drawn = {schedule.kind: bars(schedule) for schedule in examples()}
    assert drawn["constant"] == "▂▄▅▇" + "█" * 44
    assert drawn["wsd"].startswith("▂▄▅▇" + "█" * 34)
    assert drawn["linear"][-1] == drawn["cosine"][-1] == drawn["wsd"][-1] == "▂"
    assert sorted(drawn["linear"][5:], reverse=True) == list(drawn["linear"][5:])


def test_the_picture_of_the_guide_is_the_code() -> None:
    assert (Path(__file__).parents[4] / "docs" / "schedules.svg").read_text() == svg(examples())
