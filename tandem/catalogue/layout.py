"""`ParallelLayout` and `MinimumCards`: over how many cards a model is trained, and what says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """One way to spread training over cards of 64 GB; cards beyond one copy of the model are data parallel."""

    seq_length: int
    """Longest sequence it holds, in tokens."""
    tp: int
    """Tensor parallel: cards that share every layer."""
    pp: int
    """Pipeline parallel: stages the layers are cut into."""
    cards: int
    cp: int = 1
    """Context parallel: cards that share every sequence."""
    source: Literal["document", "derived"]
    """Whether the documents state it, or it was taken from something else."""
    basis: str
    """What it was read from."""

    def __post_init__(self) -> None:
        """A row that does not add up is our own mistake."""
        assert self.cards % (self.tp * self.pp * self.cp) == 0, f"{self} has cards left over"


@dataclass(frozen=True, kw_only=True)
class MinimumCards:
    """The fewest cards of 64 GB that the documents name for a model."""

    cards: int
    tuning: Literal["any", "full", "lora"] = "any"
    seq_length: int | None = None
    """Up to which sequence length; None where they name none."""


DOCUMENT = "stated by the documents"


def documented(seq_length: int, *, tp: int, pp: int, cards: int) -> ParallelLayout:
    """A row of the documents' tables."""
    return ParallelLayout(seq_length=seq_length, tp=tp, pp=pp, cards=cards, source="document", basis=DOCUMENT)


def derived(basis: str, seq_length: int, *, tp: int, pp: int, cards: int, cp: int = 1) -> ParallelLayout:
    """A layout the documents do not state, and where it comes from."""
    return ParallelLayout(seq_length=seq_length, tp=tp, pp=pp, cp=cp, cards=cards, source="derived", basis=basis)


EXAMPLE = "ModelLink's example script"
"""https://gitee.com/ascend/ModelLink, `examples/mcore/*/pretrain_*.sh`, September 2024."""


def like(name: str) -> str:
    """The basis of a layout that another model of the same or nearly the same shape has."""
    return f"as {name}, which is about as large"
