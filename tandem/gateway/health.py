"""Who is up and what it can do: a background task that asks every worker's `/health` once a second.

A worker that comes up, or was not heard for a moment, is asked for its `/identity` first: another program may have
taken its place. vLLM has no such route and none of the capabilities; it is asked for its models. Where it is known who
must answer at an address, anybody else stays down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec

from tandem.gateway.expected import Expected
from tandem.gateway.introduction import Introduction, ModelList, complaints
from tandem.gateway.peer import Peers
from tandem.gateway.pool import Pool
from tandem.gateway.worker import Worker

TIMEOUT_S: Final = 2.0
MISSES_TO_DOWN: Final = 3
"""Checks in a row that must fail before a worker that was up counts as down: a busy instance may answer one late."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class HealthWatch:
    """Keeps a pool's idea of who is up true.

    Args:
        pool: What to keep true.
        peers: To ask with.
        period_s: Seconds between two checks of a worker.
        expected: Who must answer at each of the pool's workers, in their order; nothing where anybody may.
    """

    def __init__(self, pool: Pool, peers: Peers, period_s: float, expected: Sequence[Expected] = ()) -> None:
        self._pool = pool
        self._expected = dict(zip(pool.workers, expected, strict=bool(expected)))
        self._peers = peers
        self._period_s = period_s
        self._misses: dict[str, int] = {}
        self._known: dict[Worker, Introduction] = {}
        self._strangers: dict[Worker, str] = {}
        self._remarks: dict[Worker, str] = {}

    @property
    def strangers(self) -> tuple[str, ...]:
        """What is wrong with those who answer in place of an expected worker, in the order of the workers."""
        return tuple(self._strangers[worker] for worker in self._pool.workers if worker in self._strangers)

    def remark(self, worker: Worker) -> str:
        """What is odd about a worker that is not up, for those who wait for it; empty where nothing is known."""
        return self._remarks.get(worker, "")

    async def run(self) -> None:
        """Check for ever, once per period; cancel the task to end it."""
        while True:
            await self.check()
            await asyncio.sleep(self._period_s)

    async def check(self) -> None:
        """Ask every worker once, all at the same time, and mark the pool."""
        await asyncio.gather(*map(self._check, self._pool.workers))

    async def _check(self, worker: Worker) -> None:
        status, _ = await self._get(worker, "/health")
        if status == HTTPStatus.SERVICE_UNAVAILABLE or not status:
            self._remarks.pop(worker, None)
        if status not in (0, HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE):
            self._remarks[worker] = f"it answers /health with status {status}; is it an instance of this service?"
        known = self._misses.get(worker.name) == 0
        healthy = status == HTTPStatus.OK and (known or await self._introduced(worker))
        misses = 0 if healthy else self._misses.get(worker.name, 0) + 1
        self._misses[worker.name] = misses
        up = healthy or (self._pool.is_up(worker) and misses < MISSES_TO_DOWN)
        if up != self._pool.is_up(worker):
            log.info("%s is %s", worker.name, "up" if up else "down")
        self._pool.mark(worker, up=up)

    async def _introduced(self, worker: Worker) -> bool:
        """Learn who a worker is and what it can do; False if it does not say, or is somebody else."""
        status, body = await self._get(worker, "/identity")
        if status == HTTPStatus.NOT_FOUND:
            return await self._introduced_by_its_models(worker)
        said = read(body, Introduction) if status == HTTPStatus.OK else None
        if said is None:
            what = "nothing readable" if status == HTTPStatus.OK else f"status {status}" if status else "nothing"
            self._remarks[worker] = f"it answers /health, but /identity with {what}; is it an instance of this service?"
        return said is not None and self._met(worker, said)

    async def _introduced_by_its_models(self, worker: Worker) -> bool:
        """Of an engine without `/identity`; where anybody may stand at its place, it need not tell them."""
        status, body = await self._get(worker, "/v1/models")
        listed = read(body, ModelList) if status == HTTPStatus.OK else None
        if listed is not None:
            return self._met(worker, listed.introduction())
        if worker not in self._expected:
            return self._met(worker, Introduction())
        wants_key = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        why = "which wants a key; start it without one" if wants_key else "so it cannot be known"
        self._remarks[worker] = f"it answers /v1/models with {f'status {status}' if status else 'nothing'}, {why}"
        return False

    def _met(self, worker: Worker, said: Introduction) -> bool:
        """Whether it is who it should be; what is wrong with it is logged when it is new."""
        self._pool.learn(worker, said.capabilities, said.digest)
        expected = self._expected.get(worker)
        stranger = expected and expected.stranger(said)
        if said != self._known.pop(worker, None):
            for complaint in [stranger] if stranger else complaints(worker, said, self._known):
                log.warning("%s", complaint)
        self._known[worker] = said
        self._strangers.pop(worker, None)
        if stranger:
            self._strangers[worker] = stranger
        return not stranger

    async def _get(self, worker: Worker, path: str) -> tuple[int, bytes]:
        """Status and body; status 0 if there is no answer."""
        try:
            return await self._peers.ask(worker.url, "GET", path, timeout_s=TIMEOUT_S)
        except OSError:
            return 0, b""


def read(body: bytes, kind: type[T]) -> T | None:
    """What a stranger's JSON says, or None: whatever it sends, the watch goes on."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
