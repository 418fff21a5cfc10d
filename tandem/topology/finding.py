"""One thing that is wrong with a rank table."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.errors import printable


@dataclass(frozen=True)
class Finding:
    """A broken rule: where, what, and what to do."""

    source: str
    """The file, or what the caller named the table."""
    path: str
    """JSON path of the value at fault, such as `$.server_group_list[1].server_count`."""
    rule: str
    """Short name of the rule, stable enough to filter by."""
    problem: str
    fix: str

    def __str__(self) -> str:
        return printable(f"{self.source}: {self.path}: {self.problem}; {self.fix}")
