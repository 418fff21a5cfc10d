"""Whether a run fits, and what would: changes from the cheapest on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tandem.catalogue.config import ModelConfig
from tandem.training.plan.footing import Footing
from tandem.training.plan.memory import MemoryPlan, estimate, least
from tandem.training.settings.config import Recompute

MOST_RANKS = 4096
MODES: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Change:
    """Something to do otherwise, and what memory is needed then."""

    what: str
    footing: Footing
    plan: MemoryPlan


def cheapest_fit(config: ModelConfig, footing: Footing, capacity: int) -> Change | None:
    """The first change of `changes` that fits in `capacity` bytes of a rank; None where none does."""
    for what, changed in changes(footing):
        if least(config, changed) > capacity:  # known at once, and a plan takes a second
            continue
        plan = estimate(config, changed)
        if plan.total <= capacity:
            return Change(what, changed, plan)
    return None


def changes(footing: Footing) -> Iterator[tuple[str, Footing]]:
    """What can be changed without changing what is learnt, by its cost: time first, then cards.

    Smaller micro-batches cost little, recomputation up to a third more work, more ranks are more cards; on CPUs more
    hosts, because the ranks of a host share its memory.
    """
    smaller = list(_smaller(footing))
    yield from smaller
    for mode in MODES[MODES.index(footing.recompute) + 1 :]:
        for what, changed in (("", footing), *smaller):
            words = [what, f"recompute {mode}"]
            yield " and ".join(word for word in words if word), replace(changed, recompute=mode)
    frugal = replace(smaller[-1][1] if smaller else footing, recompute="full")
    ranks = footing.ranks * 2
    while ranks <= MOST_RANKS:
        more = f"{ranks // footing.ranks} times as many hosts" if footing.device == "cpu" else f"{ranks} ranks"
        yield f"{more}, micro-batch {frugal.micro_batch}, recompute full", replace(frugal, ranks=ranks)
        ranks *= 2


def _smaller(footing: Footing) -> Iterator[tuple[str, Footing]]:
    """Halved micro-batches down to one sequence; the step stays as large."""
    size, times = footing.micro_batch, footing.micro_batches
    while size % 2 == 0 and size > 1:
        size, times = size // 2, times * 2
        yield f"micro-batch {size}", replace(footing, micro_batch=size, micro_batches=times)
    if size > 1:
        yield "micro-batch 1", replace(footing, micro_batch=1, micro_batches=times * size)
