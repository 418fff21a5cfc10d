"""Who is to blame for a hang: every rank's report read side by side. Needs no torch, so that a launcher can ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tandem.errors import ProcessError
from tandem.files import json_bytes, read_json_object

HUNG = 76
"""The exit code of a process that ended itself because no step ended; 75 is that of one that lost another rank."""


@dataclass(frozen=True, kw_only=True)
class Last:
    """The last collective a rank began."""

    name: str
    group: str
    """The process group."""
    number: int
    """Of the collective in its group, from 1; the same on all its ranks."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one rank says of a hang."""

    rank: int
    world: int
    """Number of ranks."""
    step: int
    """Under way."""
    seconds: float
    """Since the last step ended."""
    collective: str | None
    module: str | None
    line: str
    """Innermost function, file and line."""
    last: Last | None
    """Where torch's flight recorder is on."""

    def __str__(self) -> str:
        if self.collective is None:
            last = "" if self.last is None else f"; its last was {self.last.name} number {self.last.number}"
            where = f"not in any collective: in {self.line}{last}"
        else:
            where = f"in {self.waits_in()}"
        return f"rank {self.rank}: step {self.step}, for {self.seconds:.0f} s {where}"

    def waits_in(self) -> str:
        """The collective, and whose."""
        return f"{self.collective}" + (f" of {self.module}" if self.module else "")

    def to_json(self) -> bytes:
        """A file's content."""
        return json_bytes(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What all reports together say."""

    reports: Sequence[Report]
    culprits: Sequence[int]
    """Ranks the others wait for; empty where no rank is behind the others."""
    verdict: str
    """One sentence."""

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  {report}" for report in self.reports)])


def report_path(folder: Path, rank: int) -> Path:
    """Where a rank's report lies."""
    return folder / f"rank_{rank:05d}.hang.json"


def stacks_path(folder: Path, rank: int) -> Path:
    """Where a rank's stacks lie."""
    return folder / f"rank_{rank:05d}.stacks.txt"


def collect(folder: Path) -> Diagnosis | None:
    """Read all ranks' reports of a hang; None where there was none.

    Raises:
        ProcessError: A report cannot be read.
    """
    reports = sorted((_read(path) for path in folder.glob("rank_*.hang.json")), key=lambda report: report.rank)
    if not reports:
        return None
    culprits, verdict = _judge(folder, reports)
    return Diagnosis(reports=reports, culprits=culprits, verdict=verdict)


def _judge(folder: Path, reports: Sequence[Report]) -> tuple[list[int], str]:
    silent = sorted(set(range(reports[0].world)) - {report.rank for report in reports})
    if silent:
        return silent, f"{_named(silent)} left no report: dead, stopped, or {_stuck(folder, silent)}"
    elsewhere = [report.rank for report in reports if report.collective is None]
    if 0 < len(elsewhere) < len(reports):
        return elsewhere, f"{_named(elsewhere)} did not come to the collective that the others wait in"
    behind = _behind(reports)
    if behind:
        return behind, f"{_named(behind)} began fewer collectives than the others"
    if elsewhere:
        return [], "no rank is in a collective: steps take longer than the guard waits; raise guard.hang_after"
    places = Counter(report.waits_in() for report in reports)
    if len(places) > 1:
        rare = min(places.values())
        odd = [report.rank for report in reports if places[report.waits_in()] == rare < max(places.values())]
        return odd, f"ranks wait in different collectives: {', '.join(places)}; they do not run the same program"
    return [], (
        f"all ranks wait in the same {reports[0].waits_in()}: the network between them does not carry it; check "
        "GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME or HCCL_SOCKET_IFNAME"
    )


def _behind(reports: Sequence[Report]) -> list[int]:
    """Ranks whose last collective of the group that all share has a lower number than that of others."""
    lasts = [report.last for report in reports]
    if None in lasts or len({last.group for last in lasts if last}) > 1:
        return []
    numbers = [last.number for last in lasts if last]
    return [
        report.rank for report, number in zip(reports, numbers, strict=True) if number == min(numbers) < max(numbers)
    ]


def _stuck(folder: Path, ranks: Sequence[int]) -> str:
    """What `faulthandler` wrote of a rank whose interpreter was held."""
    for rank in ranks:
        path = stacks_path(folder, rank)
        # Threads are listed from the newest to the main one, each from its innermost frame outwards.
        main = path.read_text(encoding="utf-8").rpartition("hread 0x")[2] if path.exists() else ""
        frame = next((line.strip() for line in main.splitlines() if line.startswith("  File ")), None)
        if frame is not None:
            return f"in code that never lets go of the interpreter ({frame}; see {path})"
    return "cut off"


def _named(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _read(path: Path) -> Report:
    fields = read_json_object(path, ProcessError)
    try:
        last = fields.pop("last")
        return Report(**fields, last=None if last is None else Last(**last))
    except (TypeError, KeyError) as error:
        raise ProcessError(f"{path}: holds no report of a hang ({error}); remove it") from None
