"""What a run's folder says of it afterwards: `tandem train report`. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.table import Table

from tandem.errors import UsageError
from tandem.training.data.output import mark_path, skipped_path
from tandem.training.data.skipped import count_skipped
from tandem.training.progress import StepReport
from tandem.training.watch.metrics import METRICS, read_metrics
from tandem.training.watch.record import DATA, FORMULA

FILES = (METRICS, FORMULA, DATA)
"""What is read of a run's folder."""
WARM = 1
"""First steps of a session, whose speed is not that of the others."""


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """Rows that are not trained on."""

    path: str
    kinds: dict[str, int]
    """How many for each kind of reason."""

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.kinds.values())

    def __str__(self) -> str:
        """For people, in a line."""
        kinds = "; ".join(f"{rows} times: {kind}" for kind, rows in self.kinds.items())
        return f"{self.rows} rows are not trained on, see {self.path}: {kinds}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One stage of a run."""

    stage: str
    """Its folder, from the run's."""
    steps: int
    loss_first: float
    loss_last: float
    loss_lowest: float
    tokens: int
    """Valid targets learnt from."""
    elapsed: float
    """Seconds of training."""
    step_seconds: float
    """Of the median step, as are the speeds; first steps of a session are left out."""
    tokens_per_s_device: float
    """The documents' tokens/s/p."""
    real_tokens_per_s: float
    learnt_tokens_per_s: float
    mfu: float | None
    formula: str
    """How MFU is counted; empty where the run did not say."""
    memory_peak: int | None
    """Bytes."""
    interruptions: int
    """Times that it went on in another process; one that ended before its first step is not known of."""
    skipped_batches: int
    """That the guard left out."""
    skipped_rows: tuple[SkippedFile, ...] | None
    """Of the data, with the files that hold them; None where it is not known: another program prepared the data, or it
    is not where it was."""


def summaries(run: Path) -> list[Summary]:
    """Every stage below a folder that has made a step, in the order of their names.

    Raises:
        DataError: A metrics file is broken.
        UsageError: There is none.
    """
    found = [summary for path in sorted(run.rglob(METRICS)) if (summary := _summary(run, path)) is not None]
    if not found:
        raise UsageError(f"{run}: holds no {METRICS} with a step in it; give the folder of a run")
    return found


def _summary(run: Path, path: Path) -> Summary | None:
    reports = read_metrics(path)
    if not reports:
        return None
    steady, last = _steady(reports), reports[-1]
    shares = [report.mfu for report in steady if report.mfu is not None]
    formula = path.with_name(FORMULA)
    return Summary(
        stage=str(path.parent.relative_to(run)),
        steps=last.step,
        loss_first=reports[0].loss,
        loss_last=last.loss,
        loss_lowest=min(report.loss for report in reports),
        tokens=last.tokens,
        elapsed=last.elapsed,
        step_seconds=median(report.seconds for report in steady),
        tokens_per_s_device=median(report.tokens_per_s_device for report in steady),
        real_tokens_per_s=median(report.real_tokens_per_s for report in steady),
        learnt_tokens_per_s=median(report.learnt_tokens_per_s for report in steady),
        mfu=median(shares) if shares else None,
        formula=formula.read_text(encoding="utf-8").strip() if formula.exists() else "",
        memory_peak=max((report.memory_peak for report in reports if report.memory_peak is not None), default=None),
        interruptions=max(report.session for report in reports) - 1,
        skipped_batches=last.skipped,
        skipped_rows=_skipped_rows(path.with_name(DATA)),
    )


def _steady(reports: Sequence[StepReport]) -> Sequence[StepReport]:
    sessions = [report.session for report in reports]
    late = [report for place, report in enumerate(reports) if place - sessions.index(report.session) >= WARM]
    return late or reports


def _skipped_rows(data: Path) -> tuple[SkippedFile, ...] | None:
    prefixes = [Path(line) for line in os.fsdecode(data.read_bytes()).split("\n")[:-1]] if data.exists() else []
    if not prefixes or not all(mark_path(prefix).exists() for prefix in prefixes):
        return None
    files = [path for prefix in prefixes if (path := skipped_path(prefix)).exists()]
    return tuple(SkippedFile(path=str(path), kinds=count_skipped(path)) for path in files)


def draw_report(found: Sequence[Summary]) -> Table:
    """A column for each stage."""
    table = Table(show_header=True)
    table.add_column("")
    for summary in found:
        table.add_column(summary.stage, justify="right")
    columns = [_texts(summary) for summary in found]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    return table


def _texts(summary: Summary) -> dict[str, str]:
    return {
        "steps": f"{summary.steps:,}",
        "loss, first": f"{summary.loss_first:.4f}",
        "loss, last": f"{summary.loss_last:.4f}",
        "loss, lowest": f"{summary.loss_lowest:.4f}",
        "tokens learnt from": f"{summary.tokens:,}",
        "seconds of training": f"{summary.elapsed:,.1f}",
        "seconds per step": f"{summary.step_seconds:.3f}",
        "tokens/s/device": f"{summary.tokens_per_s_device:,.0f}",
        "real tokens/s": f"{summary.real_tokens_per_s:,.0f}",
        "learnt tokens/s": f"{summary.learnt_tokens_per_s:,.0f}",
        "MFU": "-" if summary.mfu is None else f"{summary.mfu:.1%}",
        "memory peak, GiB": "-" if summary.memory_peak is None else f"{summary.memory_peak / 2**30:.2f}",
        "interruptions": str(summary.interruptions),
        "skipped batches": str(summary.skipped_batches),
        "skipped rows": "-" if summary.skipped_rows is None else str(sum(file.rows for file in summary.skipped_rows)),
    }
