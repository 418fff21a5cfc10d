"""Learning rates as a picture: a line on a terminal, or an SVG for a page. No torch.

As a program it draws the four schedules side by side: `python -m tandem.training.compute.sketch > schedules.svg`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from tandem.training.compute.schedule import Schedule
from tandem.training.settings.config import ScheduleKind

BARS = "▁▂▃▄▅▆▇█"
COLUMNS = 48
WIDTH, HEIGHT, GAP = 150, 80, 20
"""Of one picture of the SVG, and between two."""


def bars(schedule: Schedule) -> str:
    """The learning rate over the run, from nothing at the lowest bar to the peak at the highest; `COLUMNS` wide."""
    steps = (max(1, round((column + 1) * schedule.steps / COLUMNS)) for column in range(COLUMNS))
    return "".join(BARS[round(schedule.at(step) / schedule.peak * (len(BARS) - 1))] for step in steps)


def svg(schedules: Sequence[Schedule]) -> str:
    """Each schedule beside the one before, with its name below."""
    pictures = "\n".join(_picture(schedule, place) for place, schedule in enumerate(schedules))
    width, height = len(schedules) * (WIDTH + GAP), HEIGHT + 2 * GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="{width}" height="{height}" fill="white"/>\n{pictures}\n</svg>\n'
    )


def _picture(schedule: Schedule, place: int) -> str:
    left, bottom = place * (WIDTH + GAP) + GAP / 2, HEIGHT + GAP / 2
    points = " ".join(
        f"{left + WIDTH * step / schedule.steps:.1f},{bottom - HEIGHT * schedule.at(step) / schedule.peak:.1f}"
        for step in range(schedule.steps + 1)
    )
    return (
        f'<path d="M{left} {bottom - HEIGHT}V{bottom}H{left + WIDTH}" fill="none" stroke="silver"/>\n'
        f'<polyline points="{points}" fill="none" stroke="royalblue" stroke-width="2"/>\n'
        f'<text x="{left + WIDTH / 2}" y="{bottom + GAP}" text-anchor="middle">{schedule.kind}</text>'
    )


def examples() -> list[Schedule]:
    """Every kind over a hundred steps: ten of warm-up, and with `wsd` twenty of descent, to a tenth of the peak."""
    return [
        Schedule(kind=kind, peak=1.0, minimum=0.1, warmup=10, steps=100, decay=20) for kind in get_args(ScheduleKind)
    ]


if __name__ == "__main__":
    print(svg(examples()), end="")
