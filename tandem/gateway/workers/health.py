"""Who is up and what it can do: a background task that asks every worker's `/health` once a second.

A worker that comes up, was not heard for a moment, or answers as another process than before is asked for its
`/identity` first: another program may have taken its place. vLLM has no such route and none of the capabilities; it is
asked for its models. Where it is known who must answer at an address, anybody else stays down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec

from tandem.gateway.wire.peer import Peers
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.expected import Expected
from tandem.gateway.workers.introduction import Introduction, ModelList, Pulse, complaints
from tandem.gateway.workers.pool import Pool
from tandem.protocol.identity import Role
from tandem.protocol.json_body import UNREADABLE

TIMEOUT_S: Final = 2.0
MISSES_TO_DOWN: Final = 3
"""Checks in a row that must fail before a worker that was up counts as down: a busy instance may answer one late."""

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass
class Acquaintance:
    """What is known of one worker."""

    misses: int | None = None
    """Checks in a row that failed; None before the first."""
    said: Introduction | None = None
    stranger: str | None = None
    """What is wrong with who answers in an expected worker's place."""
    remark: str = ""
    """What is odd about it, for those who wait for it and those who look after it."""


class HealthWatch:
    """Keeps a pool's idea of who is up true.

    Args:
        pool: What to keep true.
        peers: To ask with.
        period_s: Seconds between two checks of a worker.
        expected: Who must answer at a worker's address; anybody may where nothing is said.
    """

    def __init__(
        self,
        pool: Pool,
        peers: Peers,
        period_s: float,
        expected: Mapping[Worker, Expected] = MappingProxyType({}),
    ) -> None:
        self._pool = pool
        self._expected = expected
        self._peers = peers
        self._period_s = period_s
        self._known: dict[Worker, Acquaintance] = {}
        self._checking: set[Worker] = set()
        self._missing: tuple[Role, ...] | None = None

    @property
    def strangers(self) -> tuple[str, ...]:
        """What is wrong with those who answer in place of an expected worker, in the order of the workers."""
        return tuple(known.stranger for known in map(self.known, self._pool.workers) if known.stranger)

    def known(self, worker: Worker) -> Acquaintance:
        """What is known of a worker."""
        return self._known.setdefault(worker, Acquaintance())

    async def run(self) -> None:
        """Check for ever, each once per period; cancel the task to end it."""
        async with asyncio.TaskGroup() as checks:
            while True:
                await asyncio.sleep(self._period_s)
                self._tell_who_is_missing()
                self._known = {worker: self.known(worker) for worker in self._pool.workers}
                for worker, after_s in self._due():
                    checks.create_task(self._check(worker, after_s))

    async def check(self) -> None:
        """Ask every worker once, all at the same time, and mark the pool."""
        await asyncio.gather(*(self._check(worker, 0.0) for worker in self._pool.workers))
        self._tell_who_is_missing()

    def _due(self) -> list[tuple[Worker, float]]:
        """Whom to ask, and after how many seconds: of many workers, all answers at once would hold up every request.

        Who has not answered yet is asked in the next period, and holds up nobody else's check.
        """
        workers = self._pool.workers
        step_s = self._period_s / 2 / max(1, len(workers))
        return [(worker, i * step_s) for i, worker in enumerate(workers) if worker not in self._checking]

    def _tell_who_is_missing(self) -> None:
        """One role serves alone for the other one: requests do not fail, so somebody has to say it."""
        missing = self._pool.missing
        if missing != self._missing and (missing or self._missing):
            log.warning("nobody serves as %s", " or ".join(missing)) if missing else log.info("every role is served")
        self._missing = missing

    async def _check(self, worker: Worker, after_s: float) -> None:
        self._checking.add(worker)
        try:
            await asyncio.sleep(after_s)
            await self._look_at(worker)
        except Exception:  # a bug that one worker's answer brings out leaves all others looked after
            log.exception("%s could not be checked", worker.name)
        finally:
            self._checking.discard(worker)

    async def _look_at(self, worker: Worker) -> None:
        known = self.known(worker)
        status, body = await self._get(worker, "/health")
        if status == HTTPStatus.SERVICE_UNAVAILABLE or not status:
            known.remark = ""
        if status not in (0, HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE):
            known.remark = f"it answers /health with status {status}; is it an instance of this service?"
        is_same = known.misses == 0 and not is_another(known.said, body)
        healthy = status == HTTPStatus.OK and (is_same or await self._introduced(worker))
        misses = known.misses = 0 if healthy else (known.misses or 0) + 1
        up = healthy or (self._pool.is_up(worker) and misses < MISSES_TO_DOWN)
        if up != self._pool.is_up(worker):
            log.log(logging.INFO if up else logging.WARNING, "%s is %s", worker.name, "up" if up else "down")
        self._pool.mark(worker, up=up)

    async def _introduced(self, worker: Worker) -> bool:
        """Learn who a worker is and what it can do; False if it does not say, or is somebody else."""
        status, body = await self._get(worker, "/identity")
        if status == HTTPStatus.NOT_FOUND:
            return await self._introduced_by_its_models(worker)
        said = read(body, Introduction) if status == HTTPStatus.OK else None
        if said is None:
            what = "nothing readable" if status == HTTPStatus.OK else f"status {status}" if status else "nothing"
            remark = f"it answers /health, but /identity with {what}; is it an instance of this service?"
            self.known(worker).remark = remark
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
        self.known(worker).remark = f"it answers /v1/models with {f'status {status}' if status else 'nothing'}, {why}"
        return False

    def _met(self, worker: Worker, said: Introduction) -> bool:
        """Whether it is who it should be; what is wrong with it is logged when it is new."""
        known, before = self.known(worker), self.known(worker).said
        self._pool.learn(worker, said.capabilities, said.digest)
        expected = self._expected.get(worker)
        known.stranger = expected.stranger(said) if expected else None
        others = {other: its.said for other, its in self._known.items() if its.said is not None and other != worker}
        wrong = [known.stranger] if known.stranger else list(complaints(worker, said, others))
        if said != before:
            for complaint in wrong:
                log.warning("%s", complaint)
        if before is not None and said.engine_id != before.engine_id:
            self._pool.restarted(worker)
        known.said, known.remark = said, "; ".join(wrong)
        return not known.stranger

    async def _get(self, worker: Worker, path: str) -> tuple[int, bytes]:
        """Status and body; status 0 if there is no answer."""
        try:
            return await self._peers.ask(worker.url, "GET", path, timeout_s=TIMEOUT_S)
        except OSError:
            return 0, b""


def is_another(said: Introduction | None, body: bytes) -> bool:
    """Whether a health check was answered by another process than the one that introduced itself."""
    pulse = read(body, Pulse) if body else None
    return said is not None and pulse is not None and pulse.engine_id not in (None, said.engine_id)


def read(body: bytes, kind: type[T]) -> T | None:
    """What a stranger's JSON says, or None: whatever it sends, the watch goes on."""
    try:
        return msgspec.json.decode(body, type=kind)
    except UNREADABLE:
        return None
