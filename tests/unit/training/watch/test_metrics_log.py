from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tandem.errors import DataError
from tandem.training.inputs import differences, digest
from tandem.training.progress import StepReport
from tandem.training.watch.metrics import MetricsLog, read_metrics
from tandem.training.watch.picture import smooth


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
    assert read_metrics(path) == [report(1), report(2), replace(report(3), session=2)]


def test_a_session_counts_though_all_its_steps_are_taken_again(tmp_path: Path) -> None:
    for _ in range(3):
        with MetricsLog(tmp_path / "metrics.jsonl", 0) as log:
            log.append(report(1))
    assert read_metrics(tmp_path / "metrics.jsonl") == [replace(report(1), session=3)]


def test_lines_of_before_there_were_more_fields_are_read(tmp_path: Path) -> None:
    old = {"step": 1, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "tokens": 8, "tokens_per_s": 4.0,
           "consumed_samples": 1, "elapsed": 2.0}  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    assert read_metrics(tmp_path / "metrics.jsonl")[0].mfu is None


def test_broken_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DataError, match=r"m\.jsonl"):
        read_metrics(tmp_path / "m.jsonl")


def test_smoothing_keeps_a_constant() -> None:
    np.testing.assert_allclose(smooth(np.full(20, 3.0)), 3.0)


def test_differences_name_fields_and_values() -> None:
    old, new = {"stage": {"lr": 0.1, "steps": 3}, "tokens": "a" * 40}, {"stage": {"lr": 0.2, "steps": 3}, "tokens": "b"}
    assert differences(old, new) == "stage.lr was 0.1, now 0.2; tokens was aaaaaaaaaaaa…, now b"
    assert differences(old, old) == ""
    assert digest(old) != digest(new)
