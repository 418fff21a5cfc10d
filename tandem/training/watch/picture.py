"""The curves of a run as a PNG, for people; machines read `metrics.jsonl`.

As a program it draws a folder's picture once, at lowest priority, beside the training that still goes on:
`python -m tandem.training.watch.picture FOLDER TITLE`.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.files import write_whole
from tandem.training.guard.journal import GUARD, Event, read_events
from tandem.training.progress import StepReport
from tandem.training.watch.metrics import METRICS, read_metrics

PICTURE = "training_loss.png"
"""The documents' name for it."""


def draw_folder(folder: Path, title: str) -> None:
    """Draw what a stage's folder tells; nothing where no step was made yet.

    Raises:
        DataError: A file of the folder is broken.
    """
    reports = read_metrics(folder / METRICS)
    events = read_events(folder / GUARD) if (folder / GUARD).exists() else []
    if reports:
        draw_curves(reports, events, title, folder / PICTURE)


def draw_curves(reports: Sequence[StepReport], events: Sequence[Event], title: str, path: Path) -> None:
    """Draw loss (raw and smoothed), learning rate and gradient norm over the steps, and where the guard stepped in."""
    # Here and not above: it takes a second to import, and only now and then a run needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7))
    top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=(3, 1, 1))
    # Room for numbers of seven digits; a layout that measures them makes a picture take two thirds longer.
    figure.subplots_adjust(left=0.13, right=0.97, top=0.95, bottom=0.08, hspace=0.15)
    steps = [report.step for report in reports]
    loss = np.array([report.loss for report in reports])
    top.plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=0.8, label="each step")
    top.plot(steps, smooth(loss), color="tab:blue", linewidth=1.8, label="smoothed")
    top.set(ylabel="loss (nats per token)", title=title)
    middle.plot(steps, [report.grad_norm for report in reports], color="tab:orange", linewidth=0.8)
    middle.set(ylabel="gradient norm")
    bottom.plot(steps, [report.lr for report in reports], color="tab:green")
    bottom.set(ylabel="learning rate", xlabel="step")
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.3)
        _mark(axes, events)
    top.legend()
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)  # type: ignore[no-untyped-call]
    write_whole(path, content.getvalue())


def _mark(axes: Any, events: Sequence[Event]) -> None:
    """A line where the guard stepped in; one label for all of an action."""
    told: set[str] = set()
    for event in events:
        label = f"guard: {event.action.value}"
        axes.axvline(event.step, color="tab:red", linewidth=0.8, linestyle=":", label=None if label in told else label)
        told.add(label)


def smooth(values: NDArray[np.float64], weight: float = 0.95) -> NDArray[np.float64]:
    """Exponential mean whose beginning is not pulled to zero (the correction of Adam)."""
    out, mean = np.empty(len(values)), 0.0
    for index, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        out[index] = mean / (1 - weight ** (index + 1))
    return out


if __name__ == "__main__":
    os.nice(19)
    draw_folder(Path(sys.argv[1]), sys.argv[2])
