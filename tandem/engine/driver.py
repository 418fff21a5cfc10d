"""Gives an engine its thread, and lets coroutines follow their requests.

    coroutine ──submit──▶ engine ◀──plan, run, commit── step thread
        ▲                                                   │
        └──────────── one queue per request ◀── updates ────┘

An exception in a step is the end of the instance: every request gets it, and `failure` is set for whoever supervises.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial

from torch import Tensor

from tandem.engine.engine import Engine, Updates
from tandem.engine.sequence import Request, Sequence, Update
from tandem.errors import TransferError
from tandem.kv.transfer import Granted, Keep, Pull, keep_leases, pull_blocks

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""Longest sleep of an idle step thread, so that leases expire without traffic."""

KEEPS_PER_LEASE = 6
"""How often leases elsewhere are renewed, in their own duration; vLLM does it as often."""

JOIN_SECONDS = 10.0
"""How long a stop waits for the step under way."""


class Driver:
    """Runs one engine.

    Args:
        engine: What to run.
        transfer_timeout: Most seconds for fetching one request's blocks.
    """

    def __init__(self, engine: Engine, transfer_timeout: float) -> None:
        self.engine = engine
        self.failure: asyncio.Future[BaseException] | None = None
        self._transfer_timeout = transfer_timeout
        self._queues: dict[Sequence, asyncio.Queue[Update]] = {}
        self._fetches: dict[Sequence, asyncio.Task[None]] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._steps, name="engine-steps", daemon=True)

    def start(self) -> None:
        """Start stepping; call from the event loop that will call `generate`."""
        self._loop = asyncio.get_running_loop()
        self.failure = self._loop.create_future()
        self._keeping = self._loop.create_task(self._keep_leases())
        self._thread.start()

    async def stop(self) -> None:
        """Finish the step under way, then end every request that is left."""
        self._stopping = True
        self._keeping.cancel()
        self._wake.set()
        # A step that hangs is left behind: the thread is a daemon, and the requests end all the same.
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)
        self._end_all("the instance is stopping")

    @property
    def alive(self) -> bool:
        """Whether requests make progress."""
        failed = self.failure is not None and self.failure.done()
        return self._thread.is_alive() and not self._stopping and not failed

    async def generate(self, request: Request) -> AsyncGenerator[Update, None]:
        """The updates of one request, the last of which has a reason.

        Leaving early (a client that is gone) aborts the request.

        Raises:
            RequestError: The request can never fit.
        """
        sequence = self.engine.submit(request)
        queue = self._queues[sequence] = asyncio.Queue()
        self._wake.set()
        if not self.alive:
            self._end_all("the instance is stopping")
        try:
            while True:
                update = await queue.get()
                yield update
                if update.reason is not None:
                    return
        finally:
            del self._queues[sequence]
            if fetch := self._fetches.get(sequence):
                fetch.cancel()
            self.engine.abort(sequence)
            self._wake.set()

    def grant(self, pull: Pull) -> tuple[Granted, Tensor]:
        """Another instance fetches blocks; see `Engine.grant`."""
        return self.engine.grant(pull)

    def settle(self, pull: Pull, granted: Granted, *, received: bool) -> None:
        """A pull ended; blocks that came free may let a waiting request in."""
        self.engine.settle(pull, granted, received=received)
        self._wake.set()

    def keep(self, keep: Keep) -> None:
        """Requests elsewhere wait for these leases; see `Engine.keep`."""
        self.engine.keep(keep)

    def release(self, ticket: str) -> bool:
        """Nobody will fetch these blocks; False if there is no such lease."""
        released = self.engine.release(ticket)
        self._wake.set()
        return released

    def _steps(self) -> None:
        try:
            while not self._stopping:
                if not self._step():
                    self._wake.wait(IDLE_SECONDS)
                    self._wake.clear()
        except BaseException as error:
            log.exception("a step failed; the instance cannot go on")
            self._loop.call_soon_threadsafe(self._fall, error)

    def _step(self) -> bool:
        """One step; False if there was nothing to do."""
        plan, arrived = self.engine.plan()
        if plan.fetches:
            self._loop.call_soon_threadsafe(self._begin_fetches, plan.fetches)
        if arrived:
            self._loop.call_soon_threadsafe(self._deliver, arrived)
        if plan.works:
            updates = self.engine.commit(plan, self.engine.run(plan))
            self._loop.call_soon_threadsafe(self._deliver, updates)
        return bool(plan.works or arrived)

    def _deliver(self, updates: Updates) -> None:
        for sequence, update in updates:
            if queue := self._queues.get(sequence):
                queue.put_nowait(update)

    def _begin_fetches(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence not in self._queues:
                continue  # its client left since the step was planned
            task = self._fetches[sequence] = self._loop.create_task(self._fetch(sequence))
            task.add_done_callback(partial(self._fetched, sequence))

    def _fetched(self, sequence: Sequence, _: asyncio.Task[None]) -> None:
        del self._fetches[sequence]

    async def _fetch(self, sequence: Sequence) -> None:
        ticket = sequence.request.fetch_from
        assert ticket is not None
        pull = Pull(ticket.remote_request_id or "", ticket.remote_engine_id or "", self.engine.identity.digest)
        try:
            host, port = ticket.remote_host or "", ticket.remote_port or 0
            expected = self.engine.kv_bytes(len(sequence.request.prompt))
            granted, data = await pull_blocks(host, port, pull, expected, self._transfer_timeout)
        except TransferError as error:
            self._fail(sequence, str(error))
            return
        except Exception:
            log.exception("a KV pull failed")
            self._fail(sequence, "the KV pull failed; the decode instance's log says why")
            return
        self.engine.arrive(sequence, granted, data)
        self._wake.set()

    async def _keep_leases(self) -> None:
        """While requests wait here for room, their blocks elsewhere must not be given away."""
        interval = self.engine.leases.duration / KEEPS_PER_LEASE
        while True:
            await asyncio.sleep(interval)
            holders: dict[tuple[str, int, str], list[str]] = {}
            for ticket in self.engine.awaited():
                holder = (ticket.remote_host or "", ticket.remote_port or 0, ticket.remote_engine_id or "")
                holders.setdefault(holder, []).append(ticket.remote_request_id or "")
            # All at once and briefly: a holder that is out of reach must not cost the others their leases.
            await asyncio.gather(
                *(
                    keep_leases(host, port, Keep(engine_id, tickets), interval)
                    for (host, port, engine_id), tickets in holders.items()
                ),
                return_exceptions=True,  # the pull itself will say what is wrong
            )

    def _fail(self, sequence: Sequence, error: str) -> None:
        if update := self.engine.fail(sequence, error):
            self._deliver([(sequence, update)])
            self._wake.set()

    def _fall(self, error: BaseException) -> None:
        self._end_all(f"the instance failed: {error}")
        assert self.failure is not None
        with suppress(asyncio.InvalidStateError):
            self.failure.set_result(error)

    def _end_all(self, error: str) -> None:
        for sequence in list(self._queues):
            if update := self.engine.fail(sequence, error):
                self._deliver([(sequence, update)])
