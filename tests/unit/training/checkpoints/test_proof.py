"""What a checkpoint's samples come to again, and what is taken for the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tandem.errors import CheckpointError
from tandem.training.checkpoints.proof import Proof
from tandem.training.settings.config import Precision

CHECKPOINTS = Path("checkpoints")


@pytest.mark.parametrize(
    ("was", "now", "precision"),
    [(2.0, 2.0, "float32"), (2.0, 2.0001, "float32"), (2.0, 2.05, "bfloat16"), (math.nan, math.nan, "float32")],
)
def test_rounding_is_the_same(was: float, now: float, precision: Precision) -> None:
    Proof(position=8, count=4, loss=was).check(now, precision, 3, CHECKPOINTS)


@pytest.mark.parametrize(
    ("now", "precision"),
    [(2.0005, "float32"), (1.9, "bfloat16"), (math.nan, "float32"), (math.inf, "bfloat16")],
)
def test_anything_else_is_refused_with_the_samples(now: float, precision: Precision) -> None:
    said = r"^checkpoints: step 3 had a loss of 2\.000000 over samples 8 to 11, and has .* now: the data, the frozen"
    with pytest.raises(CheckpointError, match=said):
        Proof(position=8, count=4, loss=2.0).check(now, precision, 3, CHECKPOINTS)
