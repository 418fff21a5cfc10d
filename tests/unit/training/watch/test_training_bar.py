from __future__ import annotations

import errno
import io

import pytest
from rich.console import Console

from tandem.cli.training_bar import PlainLines, show_training
from tandem.training.progress import StepReport


def report(step: int) -> StepReport:
    return StepReport(step=step, loss=4.0, lr=0.1, grad_norm=1.0, tokens=step, tokens_per_s=12345.6,
                      consumed_samples=step, elapsed=1.0, mfu=0.4321)  # fmt: skip


def test_plain_lines_come_now_and_then_and_at_the_end() -> None:
    out, now = io.StringIO(), [0.0]
    lines = PlainLines(Console(file=out, width=40), clock=lambda: now[0])
    lines.reuse("corpus")
    lines.begin("pretrain", 30)
    for step in range(1, 31):
        now[0] += 0.3
        lines.step(report(step))
    lines.note("[1 of 2] rows")
    lines.end("pretrain")
    assert out.getvalue().splitlines() == [
        "corpus: there already, used again",
        "pretrain: begins",
        "step 17/30  loss 4.000  12,346 tokens/s  MFU 43.2%",
        "step 30/30  loss 4.000  12,346 tokens/s  MFU 43.2%",
        "[1 of 2] rows",
        "pretrain: done",
    ]


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    with show_training(Console(file=out, force_terminal=True, width=120, no_color=True)) as progress:
        progress.begin("corpus", None)
        progress.end("corpus")
        progress.begin("pretrain", 4, done=2)
        progress.step(report(3))
        progress.note("a note")
    text = out.getvalue()
    assert "pretrain" in text
    assert "3/4" in text
    assert "loss 4.000" in text
    assert "a note" in text


class ClosedTerminal(io.StringIO):
    """What writing to a terminal does that is gone."""

    tries = 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_outlives_its_terminal(terminal: bool) -> None:
    closed = ClosedTerminal()
    with show_training(Console(file=closed, force_terminal=terminal)) as progress:
        progress.begin("pretrain", 1)
        progress.step(report(1))
        progress.note("unheard")
        progress.end("pretrain")
    assert closed.tries, "it was written to, and said no"
