"""The loss curve as a PNG, for people; machines read `metrics.jsonl`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tandem.files import write_whole
from tandem.training.progress import StepReport


def draw_loss(reports: Sequence[StepReport], title: str, path: Path) -> None:
    """Draw the loss over the steps, raw and smoothed."""
    # Here and not above: it takes a second to import, and only the end of a run needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [report.step for report in reports]
    loss = np.array([report.loss for report in reports])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=0.8, label="each step")
    axes.plot(steps, smooth(loss), color="tab:blue", linewidth=1.8, label="smoothed")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)  # type: ignore[no-untyped-call]
    write_whole(path, content.getvalue())


def smooth(values: NDArray[np.float64], weight: float = 0.95) -> NDArray[np.float64]:
    """Exponential mean whose beginning is not pulled to zero (the correction of Adam)."""
    out, mean = np.empty(len(values)), 0.0
    for index, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        out[index] = mean / (1 - weight ** (index + 1))
    return out
