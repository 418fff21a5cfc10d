"""The workers the gateway knows and whose turn it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from tandem.errors import RequestError
from tandem.protocol.identity import Role

Capability = Literal["early_ticket", "choices", "release"]
"""Of `protocol.identity.CAPABILITIES`, what the gateway makes use of."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One instance behind the gateway."""

    name: str
    """`prefill-0`, `decode-1`, …: all that a client ever learns about it."""
    url: str
    """Its base address, without a trailing slash."""
    role: Role
    """What it is asked to do; `both` when the gateway knows no prefill instances."""


class Pool:
    """Round robin over the workers of each role that are up; a worker counts as down until `mark` says otherwise.

    Args:
        workers: All there will be.
        is_open: Whether requests are taken as soon as every role has somebody up; else only once this is set.
    """

    def __init__(self, workers: Sequence[Worker], *, is_open: bool = True) -> None:
        self.workers = tuple(workers)
        self.is_open = is_open
        self._rings: dict[Role, deque[Worker]] = {}
        for worker in self.workers:
            self._rings.setdefault(worker.role, deque()).append(worker)
        self._up: set[str] = set()
        self._capabilities: dict[str, frozenset[str]] = {}

    @classmethod
    def of(cls, prefill: Sequence[str], decode: Sequence[str], *, is_open: bool = True) -> Pool:
        """A pool over base URLs, named by role and position; without prefill URLs the decode ones do both."""
        role: Role = "decode" if prefill else "both"
        prefills = [Worker(name=f"prefill-{i}", url=url, role="prefill") for i, url in enumerate(prefill)]
        decodes = [Worker(name=f"decode-{i}", url=url, role=role) for i, url in enumerate(decode)]
        return cls(prefills + decodes, is_open=is_open)

    @property
    def apart(self) -> bool:
        """Whether prefill and decode are served by different workers."""
        return "prefill" in self._rings

    @property
    def missing(self) -> tuple[Role, ...]:
        """The roles of which no worker is up."""
        return tuple(role for role, ring in self._rings.items() if not any(self.is_up(worker) for worker in ring))

    @property
    def down(self) -> tuple[str, ...]:
        """The names of the workers that are not up."""
        return tuple(worker.name for worker in self.workers if not self.is_up(worker))

    @property
    def pairs(self) -> tuple[tuple[Worker, Worker], ...]:
        """Every way a request may go: prefill and decode worker."""
        return tuple(product(self._rings.get("prefill", ()), self._rings.get("decode", ())))

    def is_up(self, worker: Worker) -> bool:
        """Whether `worker` answered its last health checks."""
        return worker.name in self._up

    def mark(self, worker: Worker, *, up: bool) -> None:
        """Record what a health check found."""
        if up:
            self._up.add(worker.name)
        else:
            self._up.discard(worker.name)

    def learn(self, worker: Worker, capabilities: Iterable[str]) -> None:
        """Record what `worker` says it can do."""
        self._capabilities[worker.name] = frozenset(capabilities)

    def can(self, capability: Capability, *workers: Worker) -> bool:
        """Whether all of `workers` have said that they can do this."""
        return all(capability in self._capabilities.get(worker.name, ()) for worker in workers)

    def pick(self, role: Role) -> Worker:
        """The next worker of `role` that is up.

        Raises:
            RequestError: 503, when a needed role has nobody up; the message names every such role.
        """
        self.require_ready()
        ring = self._rings[role]
        while True:
            worker = ring[0]
            ring.rotate(-1)
            if self.is_up(worker):
                return worker

    def require_ready(self) -> None:
        """Refuse with 503 while the pool is closed or any needed role has nobody up.

        Raises:
            RequestError: The message names every missing role and its workers.
        """
        if not self.is_open:
            raise RequestError(
                f"the service is starting and waits for {', '.join(self.down) or 'the first hand-offs'}; "
                "try again shortly",
                status=503,
                code="not_ready",
            )
        if missing := self.missing:
            gaps = "; ".join(f"{role} ({', '.join(w.name for w in self._rings[role])})" for role in missing)
            raise RequestError(
                f"no instance answers its health check for: {gaps}; start it or try again shortly",
                status=503,
                code="not_ready",
            )
