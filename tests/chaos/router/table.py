"""The table: one line for each row, and beneath it why requests were not ok."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from chaos.router.trial import Result

OUTCOMES: Final = ("ok", "refused", "failed", "wrong", "leaked", "hung")
REASONS: Final = 4
"""Told of each row."""


def heading() -> str:
    """Two lines of Markdown."""
    names = ["row", *OUTCOMES, "misuse", "held", "stranded", "slowest s", "seconds", ""]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def line(result: Result) -> str:
    """One row."""
    counts = [str(result.outcomes[name] or "") for name in OUTCOMES]
    misuse, held = result.misuse.total() or "", len(result.held) or ""
    end = [str(misuse), str(held), str(result.stranded or ""), f"{result.slowest_s:.1f}", f"{result.seconds:.1f}"]
    return f"| {' | '.join([result.row, *counts, *end, 'passed' if result.passed else 'FAILED'])} |"


def remarks(result: Result) -> list[str]:
    """Why, most frequent first; kinds of requests are left out."""
    grouped: Counter[str] = Counter()
    for (outcome, reason), count in result.reasons.items():
        if outcome == "refused":
            continue
        grouped[f"{outcome}: {reason.rpartition(' [')[0]}"] += count
    said = [f"{count} {what}" for what, count in grouped.most_common(REASONS)]
    said += [f"misuse: {what}, {count} times" for what, count in result.misuse.items()]
    said += [f"still held on {name}: {what}" for name, what in result.held.items()]
    return said + result.faults


def footing(results: Sequence[Result]) -> str:
    """In one sentence."""
    passed = sum(result.passed for result in results)
    return f"{passed} of {len(results)} rows passed in {sum(result.seconds for result in results):.0f} s"


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For machines."""
    return [_as_json(result) for result in results]


def _as_json(result: Result) -> dict[str, Any]:
    reasons = [{"outcome": how, "reason": why, "count": n} for (how, why), n in result.reasons.most_common()]
    return {
        "row": result.row,
        "title": result.title,
        "passed": result.passed,
        "total": result.total,
        "outcomes": {name: result.outcomes[name] for name in OUTCOMES},
        "reasons": reasons,
        "misuse": dict(result.misuse),
        "held": result.held,
        "stranded": result.stranded,
        "faults": result.faults,
        "slowest_s": round(result.slowest_s, 2),
        "seconds": round(result.seconds, 2),
    }
