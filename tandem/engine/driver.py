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

from tandem.engine.audit import Audit
from tandem.engine.engine import Engine
from tandem.engine.fetch import Fetch
from tandem.engine.fetcher import Fetcher
from tandem.engine.holder import EngineHolder
from tandem.engine.open_requests import Updates
from tandem.engine.progress import Progress
from tandem.engine.request import Request
from tandem.engine.update import Update
from tandem.errors import ProcessError, RequestError
from tandem.kv.shards import Shards
from tandem.protocol.kv import KVTransferParams

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.1
"""Longest sleep of an idle step thread, so that leases and deadlines end without traffic."""

JOIN_SECONDS = 10.0
"""How long a stop waits for the step under way."""

STOPPING = "the instance is stopping; ask another one"


class Driver:
    """Runs one engine.

    Args:
        engine: What to run.
        shards: Where its blocks lie.
        fetcher: Pulls blocks from other instances.
    """

    def __init__(self, engine: Engine, shards: Shards, fetcher: Fetcher) -> None:
        self.engine = engine
        self.failure: asyncio.Future[BaseException] | None = None
        self._fetcher = fetcher
        self._progress = Progress()
        self.holder = EngineHolder(engine, shards, self._progress, self.wake)
        self._queues: dict[str, asyncio.Queue[Update]] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._steps, name="engine-steps", daemon=True)

    def start(self) -> None:
        """Start stepping; call from the event loop that will call `generate`."""
        self._loop = asyncio.get_running_loop()
        self.failure = self._loop.create_future()
        self._fetcher.start(self.engine, self.wake)
        self.engine.model.watch(self.fall)
        self._thread.start()

    async def stop(self) -> None:
        """Finish the step under way, then end every request that is left."""
        self._stopping = True
        self.wake()
        # A step that hangs is left behind: the thread is a daemon, and the requests end all the same.
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)
        self._end(list(self._queues), STOPPING)
        await self._fetcher.stop()
        await asyncio.to_thread(self.engine.model.close)

    @property
    def alive(self) -> bool:
        """Whether requests make progress."""
        failed = self.failure is not None and self.failure.done()
        return self._thread.is_alive() and not self._stopping and not failed

    def wake(self) -> None:
        """There may be something to do for the step thread."""
        self._wake.set()

    def fall(self, error: BaseException) -> None:
        """The instance cannot go on, and every request ends; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._fall, error)

    async def generate(self, request: Request) -> AsyncGenerator[Update, None]:
        """The updates of one request, all its choices' among each other; each one's last has a reason.

        Leaving early (a client that is gone) aborts the request.

        Raises:
            RequestError: The request can never fit.
        """
        try:
            self.engine.submit(request)
        except RequestError:
            self._fetcher.finish(request)
            raise
        queue = self._queues[request.id] = asyncio.Queue()
        self.wake()
        if not self.alive:
            self._end([request.id], STOPPING)
        try:
            left = len(request.choices)
            while left:
                update = await queue.get()
                left -= update.reason is not None
                yield update
                if update.error is not None:
                    return
        finally:
            del self._queues[request.id]
            self.engine.abort(request.id)
            while not queue.empty():
                self._miss(queue.get_nowait())
            self._fetcher.finish(request)
            self.wake()

    def release(self, name: str) -> bool:
        """Nobody will use this ticket or reservation; False if there is none."""
        released = self.engine.release(name)
        self.wake()
        return released

    def renew(self, name: str) -> bool:
        """Somebody else will use this ticket; False if it is not good (any more)."""
        return self.engine.renew_ticket(name)

    def reserve(self, tokens: int) -> tuple[str, float] | None:
        """Keep blocks for `tokens` tokens of a request to come: name and seconds; None if there is no room."""
        name = self.engine.reserve(tokens)
        return None if name is None else (name, self.engine.options.lease_seconds)

    def decline(self, ticket: KVTransferParams) -> None:
        """A request with this ticket was refused before it became one: its holder may let go of it."""
        self._fetcher.give_back(ticket)

    def audit(self) -> Audit:
        """Count every block and its holders."""
        return self.engine.audit()

    def _steps(self) -> None:
        try:
            while not self._stopping:
                if not self._step():
                    self._wake.wait(IDLE_SECONDS)
                    self._wake.clear()
        except BaseException as error:
            # Of a rank that died, how this process noticed is of no use to anybody.
            log.critical("a step failed; the instance cannot go on", exc_info=not isinstance(error, ProcessError))
            self.fall(error)

    def _step(self) -> bool:
        """One step; False if there was nothing to do."""
        plan, fetches, updates = self.engine.plan()
        if plan.works and (fetches or updates):
            self._loop.call_soon_threadsafe(self._deliver, fetches, updates)
            fetches, updates = [], []
        if plan.works:
            updates = self.engine.commit(plan, self.engine.run(plan))
        self._loop.call_soon_threadsafe(self._deliver, fetches, updates)
        return bool(plan.works or fetches or updates)

    def _deliver(self, fetches: list[Fetch], updates: Updates) -> None:
        for request, update in updates:
            if queue := self._queues.get(request):
                queue.put_nowait(update)
            else:
                self._miss(update)
        for fetch in fetches:
            self._fetcher.begin(fetch, wanted=fetch.sequence.request.id in self._queues)
        self._progress.ring()

    def _miss(self, update: Update) -> None:
        """Nobody hears this any more: a ticket in it is known to nobody."""
        if update.ticket is not None and update.ticket.remote_request_id is not None:
            self.engine.release(update.ticket.remote_request_id)

    def _fall(self, error: BaseException) -> None:
        self._end(list(self._queues), f"the instance failed: {error}")
        assert self.failure is not None
        with suppress(asyncio.InvalidStateError):
            self.failure.set_result(error)

    def _end(self, requests: list[str], error: str) -> None:
        """End requests here and now: no step will tell of them."""
        for request in requests:
            self.engine.fail(request, error)
        self._deliver([], self.engine.happened())
