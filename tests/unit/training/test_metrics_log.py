from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tandem.errors import DataError
from tandem.training.inputs import differences, digest
from tandem.training.metrics import MetricsLog, read_metrics
from tandem.training.picture import draw_loss, smooth
from tandem.training.progress import StepReport


def report(step: int) -> StepReport:
    return StepReport(step=step, loss=5.0 / step, lr=0.1, grad_norm=1.0, tokens=step, tokens_per_s=1.0,
                      consumed_samples=step, elapsed=1.0)  # fmt: skip


def test_resumed_log_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        for step in (1, 2, 3):
            log.append(report(step))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    with MetricsLog(path, 2) as log:
        log.append(report(3))
    assert read_metrics(path) == [report(1), report(2), report(3)]


def test_broken_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DataError, match=r"m\.jsonl"):
        read_metrics(tmp_path / "m.jsonl")


def test_picture_is_a_png(tmp_path: Path) -> None:
    draw_loss([report(step) for step in range(1, 30)], "tiny: pretrain", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_keeps_a_constant() -> None:
    np.testing.assert_allclose(smooth(np.full(20, 3.0)), 3.0)


def test_differences_name_fields_and_values() -> None:
    old, new = {"stage": {"lr": 0.1, "steps": 3}, "tokens": "a" * 40}, {"stage": {"lr": 0.2, "steps": 3}, "tokens": "b"}
    assert differences(old, new) == "stage.lr was 0.1, now 0.2; tokens was aaaaaaaaaaaa…, now b"
    assert differences(old, old) == ""
    assert digest(old) != digest(new)
