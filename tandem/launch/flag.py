"""One flag of the start command: whether it is implemented, needless or refused, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "whole", "number", "switch", "texts"]
"""What follows it: a text, a whole number, a number, nothing, or several texts."""

Status = Literal["implemented", "needless", "refused"]
"""Does what it says; accepted because what it asks for holds without it; ends the start with a message."""

Section = Literal["engine", "async engine", "OpenAI server", "tandem"]
"""Where vLLM 0.5.0 has it; `tandem` for our own."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag."""

    section: Section
    names: tuple[str, ...]
    """Its spellings, the long one first."""
    status: Status
    says: str
    """What it does, why it is needless, or what to do instead."""
    kind: Kind = "text"
    """Of one that is not refused; a refused one ends the start whatever follows it."""
    accepted: tuple[str, ...] = ()
    """Values of a refused one that ask for what is so anyway."""

    def refusal(self) -> str:
        """The message that refuses it; its value, which may be a secret, is not repeated."""
        what = f"only {' or '.join(self.accepted)} is supported" if self.accepted else "is not supported"
        return f"{self.names[0]}: {what}; {self.says}"
