"""A plan as a table for people."""

from __future__ import annotations

from rich.table import Table

from tandem.training.plan.fit import Change
from tandem.training.plan.memory import PARTS, MemoryPlan

WHAT = {
    "weights": "fp32, this rank's share",
    "copies": "weights rounded to what is computed in",
    "gradients": "fp32, this rank's share",
    "optimizer": "exp_avg and exp_avg_sq, fp32",
    "activations": "kept for the backward",
    "buffers": "logits in pieces, and what a layer takes while it computes",
    "gathered": "layers of other ranks, while they compute",
    "batch": "tokens, targets, segments",
    "process": "Python and libraries",
    "heap": "holes in the C library's heap",
}


def draw_plan(plan: MemoryPlan, capacity: int | None = None) -> Table:
    """One row for each part that is there, largest first, and their sum beside what there is."""
    table = Table(title=f"memory of each rank, highest in {plan.moment}", title_justify="left")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    table.add_column("what it is")
    for part in sorted(PARTS, key=lambda part: -getattr(plan, part)):
        if size := getattr(plan, part):
            table.add_row(part, gib(size), WHAT[part])
    table.add_section()
    table.add_row(
        "total", gib(plan.total), "" if capacity is None else f"of {gib(capacity)} GiB: {verdict(plan, capacity)}"
    )
    return table


def verdict(plan: MemoryPlan, capacity: int) -> str:
    """Whether it fits, in words."""
    over = plan.total - capacity
    return "fits" if over <= 0 else f"does not fit, {gib(over)} GiB too much"


def advice(change: Change | None) -> str:
    """What would fit, in a line."""
    if change is None:
        return (
            "nothing that leaves the result as it is would fit; shorten the samples (SEQ_LEN), train adapters (lora), "
            "or a smaller model"
        )
    return f"would fit: {change.what} ({gib(change.plan.total)} GiB)"


def gib(size: int) -> str:
    """As in `135.92`."""
    return f"{size / 2**30:,.2f}"
