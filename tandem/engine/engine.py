"""The heart of an instance: admit, plan, run, commit. Synchronous; `driver.py` gives it a thread and a loop.

A lock guards all bookkeeping and is never held while the model computes or blocks travel, so requests, aborts and pulls
are served meanwhile. Blocks freed during a step are written to at the earliest by the next plan's step, made by the
same thread; blocks that travel are held for that time by the hand-off itself (`tickets.py`, `fetch.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from tandem.engine.audit import Audit, count_blocks
from tandem.engine.fetch import Fetch
from tandem.engine.handoff import HandOff
from tandem.engine.open_requests import OpenRequests, Updates
from tandem.engine.plan import Plan
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.sampled import Sampled
from tandem.engine.scheduler import Scheduler, SchedulerLimits
from tandem.engine.sequence import Sequence, Status
from tandem.engine.stats import Stats
from tandem.engine.tickets import EngineIdentity, PullState, Tickets
from tandem.engine.update import Update
from tandem.errors import RequestError, TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.lease import Lease, LeaseBook
from tandem.kv.messages import Keep, Pull
from tandem.kv.prefix import BlockKeys
from tandem.protocol.kv import KVTransferParams
from tandem.text.detokenizer import Decodes

RELEASED = "the KV ticket was released before the prefill had ended, so nobody needs it; ask again for another one"
"""What is told to whoever asked for such a prefill."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine treats its requests."""

    limits: SchedulerLimits
    """Bounds of one step."""
    root: Callable[[Request], bytes]
    """What the keys of a request's blocks are chained to."""
    lease_seconds: float = 30.0
    """How long a ticket or a reservation is good for."""
    sharing: bool = True
    """Whether blocks that are known already are used again."""
    recompute: bool = False
    """Whether a request whose pull failed is prefilled here; otherwise it fails."""
    block_bytes: int = 0
    """Of one block over all ranks' different heads, for the counts of what travels."""


class Engine:
    """One instance's scheduler, leases and model.

    Args:
        runner: Runs plans over the cache whose blocks `pool` counts.
        pool: Which blocks are free.
        tokenizer: For the text of answers.
        options: How requests are treated.
        identity: Who this instance is to the ones that pull from it.
        clock: Seconds, monotonic; replaced in tests.
    """

    def __init__(
        self,
        runner: Runner,
        pool: BlockPool,
        tokenizer: Decodes,
        options: EngineOptions,
        identity: EngineIdentity,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.pool = pool
        self.options = options
        self.stats = Stats()
        self.reservations: LeaseBook[Lease] = LeaseBook(options.lease_seconds, pool.release, clock)
        self.tickets = Tickets(pool, identity, options.lease_seconds, clock)
        self.scheduler = Scheduler(pool, options.limits, self.reservations, sharing=options.sharing)
        self.model = runner.model
        self._runner = runner
        self._tokenizer = tokenizer
        self._clock = clock
        self._lock = threading.Lock()
        self._open = OpenRequests(self._sequence, self.scheduler, self.tickets, self.stats)
        self._fetches: set[Fetch] = set()
        self._arrived: list[tuple[Fetch, HandOff]] = []

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            RequestError: It can never fit into the cache, or its ticket's name is another one's.
        """
        needed = self.pool.blocks_for(request.cache_tokens)
        if needed > self.pool.count:
            raise RequestError(
                f"the request needs {needed} KV blocks and this instance has {self.pool.count}; "
                "shorten it, or start the instance with a larger --kv-cache-gib"
            )
        with self._lock:
            if request.ticket_name is not None:
                self.tickets.require_free(request.ticket_name)
            self._open.add(request, self._reservation(request))

    def abort(self, request: str) -> None:
        """Stop working for a request whose client is gone; does nothing if it ended."""
        with self._lock:
            self._open.end_all(request, Status.ABORTED)

    def fail(self, request: str, error: str, status: int = 500) -> None:
        """A request cannot go on; does nothing if it ended."""
        with self._lock:
            self._open.fail(request, error, status)

    def plan(self) -> tuple[Plan, list[Fetch], Updates]:
        """Take in what happened since the last step and decide the next one.

        Returns:
            The plan; the pulls to begin, each of which has to be ended with `end_fetch`; what happened.
        """
        with self._lock:
            self.tickets.expire()
            self.reservations.expire()
            self._fail_late()
            for fetch, state in self._arrived:
                self._take_in(fetch, state)
            self._arrived.clear()
            plan = self.scheduler.plan()
            fetches = [self._begin(sequence) for sequence in plan.admitted if sequence.fetches]
            for sequence in plan.admitted:
                if early := self.tickets.announce(sequence):
                    self._open.tell(sequence.request.id, Update(ticket=early))
            return plan, fetches, self._open.taken_updates()

    def happened(self) -> Updates:
        """What happened since the last step, for when there will be no other."""
        with self._lock:
            return self._open.taken_updates()

    def run(self, plan: Plan) -> list[list[Sampled]]:
        """Compute a plan, without the lock."""
        begun = self._clock()
        sampled = self._runner.run(plan)
        self.stats.seconds[plan.phase] += self._clock() - begun
        return sampled

    def commit(self, plan: Plan, sampled: Items[Items[Sampled]]) -> Updates:
        """Record what a plan computed; sequences that ended meanwhile are passed over."""
        drawn = iter(sampled)
        with self._lock:
            self.stats.steps += 1
            for work in plan.works:
                tokens = next(drawn) if work.samples else ()
                sequence = work.sequence
                self.stats.prompt_tokens_computed += max(min(len(sequence.request.prompt) - work.start, work.count), 0)
                if sequence.ended:
                    continue
                sequence.cached += work.count
                self.scheduler.publish(sequence)
                if tokens:
                    self._open.extend(sequence, tokens)
            return self._open.taken_updates()

    def open_pull(self, pull: Pull) -> PullState:
        """Begin to hand blocks over.

        Raises:
            TransferError: It was meant for another process, model or prompt, or its ticket is not good (any more).
        """
        with self._lock:
            try:
                return self.tickets.claim(pull)
            except TransferError:
                self.stats.kv_transfers_refused += 1
                raise

    def next_blocks(self, pull: PullState) -> list[int] | None:
        """The blocks that were computed since the last call; [] once there are no more, None if they are to come.

        Raises:
            TransferError: The ticket is not good any more.
        """
        with self._lock:
            return self.tickets.next_blocks(pull)

    def confirm_pull(self, pull: PullState) -> bool:
        """Everything arrived: the ticket is used up. False if it was not good any more."""
        with self._lock:
            confirmed = self.tickets.confirm(pull)
            if confirmed:
                self.stats.kv_transfers_sent += 1
                self.stats.kv_blocks_sent += len(pull.held)
            return confirmed

    def close_pull(self, pull: PullState) -> None:
        """The pull is over, however it ended."""
        with self._lock:
            self.stats.kv_transfers_failed += not pull.confirmed
            self.tickets.let_go(pull)

    def keep(self, keep: Keep) -> None:
        """Renew leases that requests elsewhere wait for, unless an earlier process is meant."""
        if keep.engine_id == self.identity.engine_id:
            with self._lock:
                self.tickets.renew(keep.tickets)

    def renew_ticket(self, name: str) -> bool:
        """Let a ticket's time begin anew; False if it is not good (any more)."""
        with self._lock:
            self.tickets.renew([name])
            return self.tickets.is_good(name)

    def release(self, name: str) -> bool:
        """Nobody will use this ticket or reservation; False if there is none."""
        with self._lock:
            if sequence := self.tickets.computing(name):
                # Whoever asked for the prefill may be somebody else, and still waits for its end.
                self._open.fail(sequence.request.id, RELEASED, 409, Status.ABORTED)
                return True
            return self.tickets.end(name) or self.reservations.end(name) is not None

    def reserve(self, tokens: int) -> str | None:
        """Keep blocks for a request that is still to come: the reservation's name, or None where there is no room.

        What those need that wait already is theirs.
        """
        with self._lock:
            count = self.pool.blocks_for(tokens)
            if count + self.scheduler.wanted > self.pool.free:
                return None
            lease = Lease(self.pool.allocate(count))
            self.reservations.add(lease)
            self.reservations.begin(lease)
            return lease.name

    def arrive(self, fetch: Fetch, state: HandOff) -> None:
        """Blocks were pulled: the next plan goes on from the first token."""
        with self._lock:
            fetch.arrived_at = self._clock()
            self._arrived.append((fetch, state))

    def miss(self, fetch: Fetch, error: str) -> None:
        """Blocks could not be pulled: the request fails, or is computed here."""
        with self._lock:
            sequence = fetch.sequence
            self.stats.kv_transfers_failed += 1
            if sequence.ended:
                return
            if not self.options.recompute:
                self._open.fail(sequence.request.id, error, 502)
                return
            sequence.fetches = False
            self.scheduler.postpone(sequence)

    def end_fetch(self, fetch: Fetch) -> None:
        """Nothing writes to the blocks of this pull any more."""
        with self._lock:
            self._fetches.discard(fetch)
            self.pool.release(fetch.blocks)

    def awaited(self) -> list[KVTransferParams]:
        """Tickets of requests whose blocks are not here yet."""
        with self._lock:
            sequences = [*self.scheduler.waiting, *self.scheduler.running]
            return [s.request.fetch_from for s in sequences if s.fetches and s.request.fetch_from is not None]

    def audit(self) -> Audit:
        """Count every block and its holders."""
        with self._lock:
            return count_blocks(
                self.pool,
                sequences=[s.blocks for s in (*self.scheduler.waiting, *self.scheduler.running)],
                leases=[ticket.blocks for ticket in self.tickets.open_ones],
                reservations=[lease.blocks for lease in self.reservations],
                pulls=[*(pull.held for pull in self.tickets.pulls), *(fetch.blocks for fetch in self._fetches)],
            )

    def _sequence(self, request: Request, choice: int, arrival: int) -> Sequence:
        keys = BlockKeys(self.options.root(request), self.pool.block_size)
        return Sequence(request, self._tokenizer, keys, arrival, choice)

    def _reservation(self, request: Request) -> Lease | None:
        """What a request names, unless another one came with it before."""
        lease = self.reservations.find(request.reservation or "")
        return None if any(one.reservation is lease for one in self.scheduler.waiting) else lease

    def _fail_late(self) -> None:
        now = self._clock()
        late = {s.request.id for s in (*self.scheduler.waiting, *self.scheduler.running) if s.request.deadline <= now}
        for request in late:
            self._open.fail(request, "the request's deadline_seconds are over; allow it more time", 504)

    def _begin(self, sequence: Sequence) -> Fetch:
        """The fetch holds the blocks it writes to, so that they stay its own if the request ends meanwhile."""
        first = sequence.published
        fetch = Fetch(sequence, first, sequence.blocks[first:], sequence.keys.content(*_whole(sequence)))
        self.pool.share(fetch.blocks)
        self._fetches.add(fetch)
        return fetch

    def _take_in(self, fetch: Fetch, state: HandOff) -> None:
        sequence = fetch.sequence
        if sequence.ended:
            return
        if error := fetch.mismatch(state, self.model.vocab_size):
            self._open.fail(sequence.request.id, error, 502)
            return
        self.stats.kv_transfers_received += 1
        self.stats.kv_blocks_received += len(fetch.blocks)
        sequence.fetches = False
        sequence.sampling = replace(sequence.sampling, seed=state.seed)
        sequence.cached = len(sequence.token_ids)
        sequence.reused, sequence.pulled_at = state.reused, fetch.arrived_at
        self.scheduler.publish(sequence)
        self._open.extend(sequence, state.first)


def _whole(sequence: Sequence) -> tuple[list[int], int]:
    return sequence.token_ids, len(sequence.token_ids)
