"""The heart of an instance: admit, plan, run, commit. Synchronous; `driver.py` gives it a thread and a loop.

A lock guards all bookkeeping and is never held while the model computes, so requests, aborts and KV pulls are served
during a step. Blocks freed during a step are handed out at the earliest by the next plan, made by the same thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from torch import Tensor

from tandem.engine.runner import Runner
from tandem.engine.scheduler import Plan, Scheduler, SchedulerLimits
from tandem.engine.sequence import Request, Sequence, Status, Update
from tandem.engine.stats import Stats
from tandem.errors import RequestError, TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import KVCache
from tandem.kv.lease import Lease, LeaseBook
from tandem.kv.transfer import Granted, Keep, Pull
from tandem.protocol.kv import KVTransferParams
from tandem.text.detokenizer import Decodes


@dataclass(frozen=True, kw_only=True)
class EngineIdentity:
    """What a ticket says of the instance that gave it."""

    engine_id: str
    digest: str
    host: str
    port: int
    """Of the KV transfer server."""


Updates = list[tuple[Sequence, Update]]


class Engine:
    """One instance's scheduler, cache, leases and model.

    Args:
        runner: Runs plans over `cache`.
        cache: The blocks' memory.
        pool: Which of its blocks are free.
        tokenizer: For the text of answers.
        limits: Bounds of one step.
        identity: Who this instance is to the ones that pull from it.
        lease_seconds: How long a ticket is good for.
    """

    def __init__(
        self,
        runner: Runner,
        cache: KVCache,
        pool: BlockPool,
        tokenizer: Decodes,
        limits: SchedulerLimits,
        identity: EngineIdentity,
        lease_seconds: float,
    ) -> None:
        self.identity = identity
        self.pool = pool
        self.stats = Stats()
        self.leases = LeaseBook(lease_seconds, pool.release)
        self.scheduler = Scheduler(pool, limits)
        self._runner = runner
        self._cache = cache
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._arrived: list[tuple[Sequence, Granted, Tensor]] = []

    def submit(self, request: Request) -> Sequence:
        """Queue a request.

        Raises:
            RequestError: It can never fit into the cache.
        """
        needed = self.pool.blocks_for(request.cache_tokens)
        if needed > self.pool.count:
            raise RequestError(
                f"the request needs {needed} KV blocks and this instance has {self.pool.count}; "
                "shorten it, or start the instance with a larger --kv-cache-gib"
            )
        sequence = Sequence(request, self._tokenizer)
        with self._lock:
            self.scheduler.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Stop working for a request whose client is gone; does nothing if it ended."""
        with self._lock:
            if not sequence.ended:
                self._end(sequence, Status.ABORTED)

    def arrive(self, sequence: Sequence, granted: Granted, data: Tensor) -> None:
        """Blocks were pulled: the next plan stores them and goes on from the first token."""
        with self._lock:
            self._arrived.append((sequence, granted, data))

    def fail(self, sequence: Sequence, error: str) -> Update | None:
        """A request cannot go on; None if it ended already."""
        with self._lock:
            if sequence.ended:
                return None
            if sequence.status is Status.TRANSFERRING:
                self.stats.kv_transfers_failed += 1
            self._end(sequence, Status.FAILED)
            return Update(reason="error", error=error)

    def plan(self) -> tuple[Plan, Updates]:
        """Take in what arrived and decide the next step; the updates are those of arrived first tokens."""
        with self._lock:
            self.leases.expire()
            updates = [update for arrival in self._arrived for update in self._take_in(*arrival)]
            self._arrived.clear()
            return self.scheduler.plan(), updates

    def run(self, plan: Plan) -> list[int]:
        """Compute a plan, without the lock."""
        return self._runner.run(plan)

    def commit(self, plan: Plan, tokens: Items[int]) -> Updates:
        """Record what a plan computed; sequences that ended meanwhile are passed over."""
        updates: Updates = []
        sampled = iter(tokens)
        with self._lock:
            self.stats.steps += 1
            for work in plan.works:
                token = next(sampled) if work.samples else None
                sequence = work.sequence
                self.stats.prompt_tokens_computed += max(min(len(sequence.request.prompt) - work.start, work.count), 0)
                if sequence.ended:
                    continue
                sequence.cached += work.count
                if token is not None:
                    updates.append((sequence, self._append(sequence, token)))
        return updates

    def grant(self, pull: Pull) -> tuple[Granted, Tensor]:
        """Claim a lease for a pull and copy its bytes out.

        Raises:
            TransferError: The pull was meant for another process or model, or the ticket is not good (any more).
        """
        _check_pull(pull, self.identity)
        with self._lock:
            lease = self.leases.claim(pull.ticket)
            try:
                data = self._cache.export_tokens(lease.blocks, lease.tokens)
            except BaseException:
                self.leases.unclaim(pull.ticket)
                raise
        return Granted(lease.token_ids, lease.seed, data.numel()), data

    def settle(self, pull: Pull, granted: Granted, *, received: bool) -> None:
        """A granted pull arrived, or broke off and may be tried again."""
        with self._lock:
            if not received:
                self.stats.kv_transfers_failed += 1
                self.leases.unclaim(pull.ticket)
                return
            self.stats.kv_transfers_sent += 1
            self.stats.kv_bytes_sent += granted.size
            self.leases.release(pull.ticket)

    def keep(self, keep: Keep) -> None:
        """Renew leases that requests elsewhere wait for, unless an earlier process is meant."""
        if keep.engine_id == self.identity.engine_id:
            with self._lock:
                self.leases.renew(keep.tickets)

    def awaited(self) -> list[KVTransferParams]:
        """Tickets of requests that wait in the queue here."""
        with self._lock:
            return [s.request.fetch_from for s in self.scheduler.waiting if s.request.fetch_from is not None]

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of keys and values of that many tokens."""
        return tokens * self._cache.layout.bytes_per_token

    def release(self, ticket: str) -> bool:
        """End a lease that nobody will fetch; False if there is none."""
        with self._lock:
            return self.leases.release(ticket)

    def _take_in(self, sequence: Sequence, granted: Granted, data: Tensor) -> Updates:
        if sequence.ended:
            return []
        prompt = sequence.request.prompt
        if granted.token_ids[:-1] != prompt or granted.token_ids[-1] >= self._runner.vocab_size:
            self._end(sequence, Status.FAILED)
            error = "the KV ticket belongs to another prompt; send both instances the same request"
            return [(sequence, Update(reason="error", error=error))]
        self._cache.import_tokens(sequence.blocks, len(prompt), data)
        sequence.sampling = replace(sequence.sampling, seed=granted.seed)
        self.stats.kv_transfers_received += 1
        self.stats.kv_bytes_received += data.numel()
        sequence.cached = len(prompt)
        return [(sequence, self._append(sequence, granted.token_ids[-1]))]

    def _append(self, sequence: Sequence, token: int) -> Update:
        """Give a sequence its next token, and end it where the token does."""
        update = sequence.append(token)
        self.stats.tokens_generated += 1
        if sequence.request.keep_for_remote:
            return self._lease(sequence, update)
        if update.reason is not None:
            self._end(sequence, Status.FINISHED)
        elif sequence.status is not Status.DECODING:
            sequence.move(Status.DECODING)
        return update

    def _lease(self, sequence: Sequence, update: Update) -> Update:
        """The first token is there and the rest is another instance's: keep the blocks under a ticket."""
        lease = self.leases.open(sequence.blocks, sequence.token_ids, sequence.sampling.seed)
        blocks, sequence.blocks = sequence.blocks, []
        self._end(sequence, Status.FINISHED)
        return Update(
            update.text, update.tokens, update.reason or "length", ticket=_ticket(lease, blocks, self.identity)
        )

    def _end(self, sequence: Sequence, status: Status) -> None:
        sequence.move(status)
        self.scheduler.remove(sequence)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        self.stats.ended[status] += 1


def _ticket(lease: Lease, blocks: list[int], identity: EngineIdentity) -> KVTransferParams:
    return KVTransferParams(
        do_remote_prefill=True,
        remote_engine_id=identity.engine_id,
        remote_block_ids=[blocks],
        remote_request_id=lease.ticket,
        remote_host=identity.host,
        remote_port=identity.port,
        remote_num_tokens=lease.tokens,
        remote_blocks_expiry_time=time.time() + lease.expires - time.monotonic(),
        transfer_mode="pull",
    )


def _check_pull(pull: Pull, identity: EngineIdentity) -> None:
    if pull.engine_id != identity.engine_id:
        raise TransferError("the KV ticket is of an earlier process; this instance was restarted since")
    if pull.digest != identity.digest:
        raise TransferError("model, weights, dtype, block size or version of the two instances differ")
