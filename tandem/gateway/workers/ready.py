"""Who may be given a request: up, serving, not left alone for failures, and of one digest with a partner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from typing import Final

from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.vitals import Vitals
from tandem.protocol.identity import Role

READY_S: Final = 0.05
"""For so long it is not looked again who is ready, where nothing is known to have changed."""


class Ready:
    """Those of a pool who are ready.

    Args:
        vitals: How each worker of the pool is doing; it may change, which `look_again` says.
        clock: Seconds, monotonic.
    """

    def __init__(self, vitals: Mapping[Worker, Vitals], clock: Callable[[], float]) -> None:
        self._vitals = vitals
        self._clock = clock
        self._until = 0.0
        self._found: dict[Role, list[Vitals]] = {}
        self._digests: dict[Role, Set[str | None]] = {}

    def look_again(self) -> None:
        """Something has changed."""
        self._until = 0.0

    def of(self, role: Role, tried: Collection[Worker] = ()) -> list[Vitals]:
        """Those of a role (who does both decodes) who were not tried."""
        found = self._all(role)
        return [vitals for vitals in found if vitals.worker not in tried] if tried else found

    def beside(self, role: Role, tried: Collection[Worker], partner: Role | Worker | None) -> list[Vitals]:
        """Those of a role who can hand over to, or go on from, a partner: of its digest, where both have told one.

        Args:
            role: As in `of`.
            tried: As in `of`.
            partner: A worker, or a role of which somebody should go with them; where nobody does, any will do.
        """
        candidates = self.of(role, tried)
        if partner is None or self._all_agree(role, partner):  # as they mostly do
            return candidates
        if isinstance(partner, Worker):
            digest = self._digest(partner)
            return [vitals for vitals in candidates if None in (digest, vitals.digest) or vitals.digest == digest]
        digests = {vitals.digest for vitals in self.of(partner, tried)}
        if None in digests or len(digests | {vitals.digest for vitals in candidates}) < 2:
            return candidates
        return [vitals for vitals in candidates if vitals.digest is None or vitals.digest in digests] or candidates

    def _all_agree(self, role: Role, partner: Role | Worker) -> bool:
        its = {self._digest(partner)} if isinstance(partner, Worker) else self._all_digests(partner)
        return len((self._all_digests(role) | its) - {None}) < 2

    def _digest(self, worker: Worker) -> str | None:
        return self._vitals[worker].digest if worker in self._vitals else None

    def _all_digests(self, role: Role) -> Set[str | None]:
        found = self._all(role)
        if role not in self._digests:
            self._digests[role] = {vitals.digest for vitals in found}
        return self._digests[role]

    def _all(self, role: Role) -> list[Vitals]:
        now = self._clock()
        if now >= self._until:
            self._found.clear()
            self._digests.clear()
            self._until = now + READY_S
        if role not in self._found:
            self._found[role] = self._look(role, now)
        return self._found[role]

    def _look(self, role: Role, now: float) -> list[Vitals]:
        """At least half of those who are up, whatever their breakers say."""
        members = [
            vitals for worker, vitals in self._vitals.items() if (worker.role == "prefill") == (role == "prefill")
        ]
        up = [vitals for vitals in members if vitals.serves]
        allowed = [vitals for vitals in up if vitals.breaker.allows(now)]
        return allowed if 2 * len(allowed) >= len(up) else up
