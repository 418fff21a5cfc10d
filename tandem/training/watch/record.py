"""`Record`: all that a run writes down while it goes, in one folder, by the rank that leads.

metrics.jsonl                  one line for each step
mfu.txt                        how MFU is counted, with this run's numbers
data.txt                       the prefixes of its prepared data, one in a line
run_log-{nodes}-0.txt          the same steps for people, every session of the run after the other
training_loss.png              curves; drawn now and then, and at the end
tensorboard/                   event files, where the extra `tensorboard` is installed

A disk that is full for a while ends no run (`growing.py`), nor does a picture that cannot be drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

from tandem.files import write_whole
from tandem.training.progress import StepReport
from tandem.training.watch.board import Board, can_write
from tandem.training.watch.growing import GrowingFile
from tandem.training.watch.metrics import METRICS, MetricsLog
from tandem.training.watch.painter import Painter
from tandem.training.watch.picture import PICTURE

FORMULA = "mfu.txt"
DATA = "data.txt"


class Record(AbstractContextManager["Record"]):
    """Writes down steps.

    Args:
        folder: Created where missing.
        title: Of the picture.
        step: The step the run continues from.
        formula: How MFU is counted.
        nodes: Hosts of the run, of which the documents' name of the log speaks; its rank is 0, that of who leads.
        data: Prefixes of what it learns from.
        note: Is told what cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        step: int,
        formula: str,
        nodes: int = 1,
        data: Iterable[Path] = (),
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._picture, self._note = folder / PICTURE, note
        self._metrics = MetricsLog(folder / METRICS, step, note)
        self._lines = GrowingFile(folder / f"run_log-{nodes}-0.txt", note)
        self._board = Board(folder / "tensorboard", step, note) if can_write() else None
        self._painter = Painter(folder, title)
        write_whole(folder / FORMULA, f"{formula}\n".encode())
        write_whole(folder / DATA, os.fsencode("".join(f"{prefix.absolute()}\n" for prefix in data)))
        self._say(f"{title}: after step {step}; {formula}")

    def append(self, report: StepReport) -> None:
        """One step."""
        self._metrics.append(report)
        self._say(line_of(report))
        if self._board is not None:
            self._board.append(report)
        self._painter.step()

    def go_back(self, step: int) -> None:
        """Forget what came after a step; the log keeps it, and says so."""
        self._metrics.go_back(step)
        self._say(f"goes on after step {step}")
        if self._board is not None:
            self._board.go_back(step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all files and draw the last picture; also where the run was stopped, or failed, and that is raised."""
        with nullcontext() if error is None else suppress(Exception):  # the first error is the one to tell
            self._finish("done" if error is None else f"ended: {type(error).__name__} {error}")

    def _finish(self, last: str) -> None:
        self._metrics.__exit__(None, None, None)
        self._say(last)
        self._lines.close()
        if self._board is not None:
            self._board.close()
        try:
            self._painter.finish()
        except OSError as failure:
            self._note(f"{self._picture}: is not drawn ({failure})")

    def _say(self, line: str) -> None:
        self._lines.append(f"{line}\n".encode())


def line_of(report: StepReport) -> str:
    """A step for people."""
    balance = "" if report.balance is None else f"load balancing loss {report.balance:.6e} | "
    load = "" if report.load_max is None else f"most loaded expert {report.load_max:.2f} | "
    mfu = "-" if report.mfu is None else f"{report.mfu:.1%}"
    return (
        f"iteration {report.step} | consumed samples {report.consumed_samples} | "
        f"elapsed time per iteration (ms) {report.seconds * 1000:.1f} | tokens/s/p {report.tokens_per_s_device:.1f} | "
        f"real tokens/s {report.real_tokens_per_s:.1f} | MFU {mfu} | learning rate {report.lr:.6e} | "
        f"lm loss {report.loss:.6e} | {balance}{load}grad norm {report.grad_norm:.3f} | skipped {report.skipped}"
    )
