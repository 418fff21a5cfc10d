"""What is found when something is looked at, and how all of it is told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tandem.errors import TandemError

Verdict = Literal["good", "note", "problem"]


@dataclass(frozen=True)
class Remark:
    """One thing that is said about what was looked at."""

    verdict: Verdict
    text: str
    """Of a problem: the place, what is wrong there, and the fix."""


@dataclass(frozen=True)
class Finding:
    """A remark with its subject."""

    subject: str
    remark: Remark

    @property
    def as_json(self) -> dict[str, str]:
        """Its three words."""
        return {"subject": self.subject, "verdict": self.remark.verdict, "text": self.remark.text}


UNKNOWN = "is only known when the problem above is solved"
Look = Callable[[], Iterator[Remark]]
"""Looks at one thing. What it raises, of tandem's own errors or the system's, is what the run would have ended with: a
problem."""


def good(text: str) -> Remark:
    """It is as it must be."""
    return Remark("good", text)


def note(text: str) -> Remark:
    """A run would not fail of it, and somebody should know."""
    return Remark("note", text)


def problem(text: str) -> Remark:
    """A run would fail of it."""
    return Remark("problem", text)


def counted(number: int, noun: str) -> str:
    """As in `1 file`, `2 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def findings(looks: Mapping[str, Look]) -> Iterator[Finding]:
    """Everything that is found, one subject after the other; a problem that two of them meet is told in full once.

    Args:
        looks: Subject -> what looks at it.
    """
    told: set[str] = set()
    for subject, look in looks.items():
        for remark in _remarks(look):
            again = remark.verdict == "problem" and remark.text in told
            yield Finding(subject, note(UNKNOWN) if again else remark)
            told.add(remark.text)


def _remarks(look: Look) -> Iterator[Remark]:
    try:
        yield from look()
    except TandemError as error:
        yield problem(str(error))
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        yield problem(f"{place}{error.strerror or error}; let this user read it, or repair or change what it names")
