"""What the next step computes: decodes first, then as much prefill as the token budget allows, first come first served.

Blocks for the longest possible answer are taken when a request is admitted, so an admitted request never runs out;
it waits in the queue instead. (Preemption, which would admit more, is not here yet.)
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tandem.engine.sequence import Sequence, Status
from tandem.kv.blocks import BlockPool


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
    fetches: list[Sequence] = field(default_factory=list)
    """Sequences whose blocks are reserved and should now be pulled."""

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(work.count for work in self.works)


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """Bounds of one step."""

    max_num_seqs: int = 64
    """Most sequences admitted at a time."""
    max_num_batched_tokens: int = 2048
    """Most tokens through the model in one step; longer prompts are prefilled in pieces."""


class Scheduler:
    """The queue and the running sequences of one instance.

    Not thread-safe: used under the engine's lock.
    """

    def __init__(self, pool: BlockPool, limits: SchedulerLimits) -> None:
        self._pool = pool
        self._limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended; its blocks are the caller's to release."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def plan(self) -> Plan:
        """Decide the next step."""
        plan = Plan()
        for sequence in self.running:
            if sequence.status is Status.DECODING:
                plan.works.append(Work(sequence, sequence.blocks, sequence.cached, 1))
        for sequence in self.running:
            if sequence.status is Status.PREFILLING:
                self._prefill(plan, sequence)
        while self._admit(plan):
            pass
        return plan

    def _admit(self, plan: Plan) -> bool:
        """Admit the head of the queue if it fits now."""
        if not self.waiting or len(self.running) >= self._limits.max_num_seqs:
            return False
        sequence = self.waiting[0]
        blocks = self._pool.blocks_for(sequence.request.cache_tokens)
        fetched = sequence.request.fetch_from is not None
        if blocks > self._pool.free or not (fetched or self._room(plan)):
            return False
        self.running.append(self.waiting.popleft())
        sequence.blocks = self._pool.allocate(blocks)
        if fetched:
            sequence.move(Status.TRANSFERRING)
            plan.fetches.append(sequence)
        else:
            sequence.move(Status.PREFILLING)
            self._prefill(plan, sequence)
        return True

    def _prefill(self, plan: Plan, sequence: Sequence) -> None:
        count = min(self._room(plan), len(sequence.token_ids) - sequence.cached)
        if count:
            plan.works.append(Work(sequence, sequence.blocks, sequence.cached, count))

    def _room(self, plan: Plan) -> int:
        return max(self._limits.max_num_batched_tokens - plan.tokens, 0)
