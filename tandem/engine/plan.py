"""What one step computes, and whose turn has come with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.engine.sequence import Sequence
from tandem.engine.stats import Phase


@dataclass(frozen=True)
class Work:
    """Tokens `start` to `start + count` of one sequence go through the model."""

    sequence: Sequence
    blocks: list[int]
    """The sequence's block table when the step was planned; an abort during the step takes it from the sequence."""
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the step reaches the sequence's last token and so gives a new one."""
        return self.start + self.count == len(self.sequence.token_ids)


@dataclass
class Plan:
    """One step."""

    works: list[Work] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    """Sequences that wait no more: their blocks will now be computed, or are to be pulled."""
    tokens: int = 0
    """Tokens that go through the model."""

    @property
    def phase(self) -> Phase:
        """`prefill` if it computes any prompt token: such a step is bound by arithmetic, a decode by memory."""
        return "prefill" if any(work.start < len(work.sequence.request.prompt) for work in self.works) else "decode"

    def add(self, work: Work) -> None:
        """Compute this too."""
        self.works.append(work)
        self.tokens += work.count

    def drop(self, sequence: Sequence) -> None:
        """Leave a sequence out that was planned: its blocks go to another one."""
        self.works = [work for work in self.works if work.sequence is not sequence]
        self.tokens = sum(work.count for work in self.works)
