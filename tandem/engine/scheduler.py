"""What the next step computes: decodes first, then as much prefill as the token budget allows.

Who goes first is `Sequence.order`: priority, then arrival. Blocks are taken as they are needed; when they run out, the
last in that order gives its own back, waits, and computes its keys and values again.

Two kinds have all their blocks from the beginning and keep them: what is pulled from another instance, and what another
instance pulls. Otherwise two instances could wait for each other for ever, each with blocks that the other's request
needs. So whatever was announced to another instance can be finished, and the first in order can always go on.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from tandem.engine.plan import Plan, Work
from tandem.engine.sequence import Sequence, Status
from tandem.kv.blocks import BlockPool
from tandem.kv.lease import Lease, LeaseBook


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

    Args:
        pool: The blocks.
        limits: Bounds of one step.
        reservations: Blocks kept for requests that are still to come, or wait.
        sharing: Whether blocks that are known already are used again.
    """

    def __init__(
        self, pool: BlockPool, limits: SchedulerLimits, reservations: LeaseBook[Lease], *, sharing: bool = True
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._reservations = reservations
        self._sharing = sharing
        self.waiting: list[Sequence] = []
        """In order."""
        self.running: list[Sequence] = []
        """In order."""
        self.preemptions = 0
        """Sequences that had to give their blocks back, since the start."""
        self.prefix_queries = 0
        self.prefix_hits = 0
        """Tokens that admitted sequences began with, and those of them whose blocks were there."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        insort(self.waiting, sequence, key=attrgetter("order"))

    @property
    def wanted(self) -> int:
        """Blocks that those who wait need to be admitted, beside what is reserved for them."""
        return sum(max(self._pool.blocks_for(len(one.token_ids)) - self._reserved(one), 0) for one in self.waiting)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is about to end or to wait, and give its blocks back."""
        (self.waiting if sequence.status is Status.WAITING else self.running).remove(sequence)
        self._give_back(sequence)

    def postpone(self, sequence: Sequence) -> None:
        """Let a running sequence wait again, without blocks."""
        self.remove(sequence)
        sequence.move(Status.WAITING)
        self.add(sequence)

    def plan(self) -> Plan:
        """Decide the next step."""
        plan = Plan()
        for status in (Status.DECODING, Status.PREFILLING):
            for sequence in list(self.running):
                if sequence.status is status:
                    self._go_on(plan, sequence)
        while self._admit(plan):
            pass
        return plan

    def publish(self, sequence: Sequence) -> None:
        """Let others share the blocks of a sequence that are full and computed."""
        full = sequence.cached // self._pool.block_size
        if self._sharing and full > sequence.published:
            keys = sequence.keys.of(sequence.token_ids, full)
            for place in range(sequence.published, full):
                self._pool.publish(sequence.blocks[place], keys[place])
            sequence.published = full

    def _go_on(self, plan: Plan, sequence: Sequence) -> None:
        """Plan the sequence's next tokens, as far as there are budget and blocks."""
        left = self._limits.max_num_batched_tokens - plan.tokens
        count = min(len(sequence.token_ids) - sequence.cached, left)
        if count > 0 and self._make_room(plan, sequence, sequence.cached + count):
            plan.add(Work(sequence, sequence.blocks, sequence.cached, count))

    def _make_room(self, plan: Plan, sequence: Sequence, tokens: int) -> bool:
        """Let the sequence have blocks for its first `tokens` tokens, taking them from those behind it if need be."""
        missing = self._pool.blocks_for(tokens) - len(sequence.blocks)
        while missing > self._pool.free:
            _, *others = (one for one in self.running if not one.pinned)
            if not others:
                return False  # it keeps what it has: only leases and pinned ones are in the way, and they end
            self._preempt(plan, others[-1])
            if others[-1] is sequence:
                return False
        if missing > 0:
            sequence.blocks.extend(self._pool.allocate(missing))
        return True

    def _preempt(self, plan: Plan, sequence: Sequence) -> None:
        plan.drop(sequence)
        self.postpone(sequence)
        self.preemptions += 1

    def _give_back(self, sequence: Sequence) -> None:
        if sequence.reservation is not None:
            self._reservations.end(sequence.reservation.name)
        self._pool.release(sequence.blocks)
        sequence.blocks, sequence.cached, sequence.published = [], 0, 0

    def _admit(self, plan: Plan) -> bool:
        """Admit the head of the queue if it fits now."""
        if not self.waiting or len(self.running) >= self._limits.max_num_seqs:
            return False
        sequence = self.waiting[0]
        if not sequence.fetches and plan.tokens >= self._limits.max_num_batched_tokens:
            return False
        if not self._take_blocks(sequence):
            return False
        self.waiting.pop(0)
        insort(self.running, sequence, key=attrgetter("order"))
        plan.admitted.append(sequence)
        if sequence.fetches:
            sequence.move(Status.TRANSFERRING)
        else:
            sequence.move(Status.PREFILLING)
            self._go_on(plan, sequence)
        return True

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Give a sequence the known blocks it begins with and, if it is pinned, all the others too."""
        length = len(sequence.token_ids)
        found = self._known(sequence, length)
        if not self._fits(sequence, length, found):
            return False
        self._pool.share(found)
        self._give_back(sequence)
        sequence.blocks = found
        sequence.cached, sequence.published = len(found) * self._pool.block_size, len(found)
        if sequence.reused is None:
            sequence.reused = min(sequence.cached, len(sequence.request.prompt))
        self.prefix_queries += length
        self.prefix_hits += sequence.cached
        if sequence.pinned:
            sequence.blocks.extend(self._pool.allocate(self._pool.blocks_for(length) - len(found)))
        return True

    def _known(self, sequence: Sequence, length: int) -> list[int]:
        """The known blocks a sequence begins with; its last token is computed in any case, unless it is pulled."""
        if not self._sharing:
            return []
        full = (length if sequence.fetches else length - 1) // self._pool.block_size
        return self._pool.match(sequence.keys.of(sequence.token_ids, full))

    def _fits(self, sequence: Sequence, length: int, found: list[int]) -> bool:
        """Whether there is room for all of its tokens, and one more block for everybody who is growing."""
        idle = sum(self._pool.holders(block) == 0 for block in found)
        most = min(length + 1, sequence.request.cache_tokens)
        needed = self._pool.blocks_for(most) - len(found) + idle
        growing = sum(other.status is Status.DECODING for other in self.running)
        reserved = self._reserved(sequence)
        return needed + (0 if reserved else growing) <= self._pool.free + reserved

    def _reserved(self, sequence: Sequence) -> int:
        """Blocks that are still kept for a sequence."""
        lease = None if sequence.reservation is None else self._reservations.find(sequence.reservation.name)
        return 0 if lease is None else len(lease.blocks)
