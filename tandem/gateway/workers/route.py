"""Which workers serve a request: prefill and decode apart, or one of them alone where there is nobody else."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from tandem.gateway.request.demand import Demand
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.pool import Pool

Kind = Literal["apart", "both", "short", "decode-alone", "prefill-alone"]
"""As planned, by two, by one that does both, or by decode because there is little to prefill; or by whoever is left."""


@dataclass(frozen=True)
class Route:
    """Who prefills and who decodes; the same worker where one does both."""

    prefill: Worker
    decode: Worker
    kind: Kind

    @classmethod
    def plan(
        cls,
        pool: Pool,
        demand: Demand,
        tried: Collection[Worker] = (),
        *,
        with_room: bool = False,
        prefilled: Worker | None = None,
    ) -> Route | None:
        """The next route over workers that were not tried; None where there is none.

        Args:
            pool: Of whom.
            demand: What is asked for.
            tried: Who is not asked.
            with_room: Whether only a decode worker with room for its keys and values will do.
            prefilled: Who has computed the prompt already.

        Raises:
            NoRoomError: Only one `with_room` will do, and nobody who decodes has any.
        """
        route = cls._handing_on(pool, demand, tried, with_room, prefilled) if prefilled else None
        route = route or cls._among(pool, demand, tried, with_room)
        for worker in route.workers if route else ():
            pool.sent(demand, worker)
        return route

    @classmethod
    def _handing_on(
        cls, pool: Pool, demand: Demand, tried: Collection[Worker], with_room: bool, prefilled: Worker
    ) -> Route | None:
        decode = pool.choose("decode", demand, tried, partner=prefilled, with_room=with_room)
        return None if decode is None else cls(prefilled, decode, "apart")

    @classmethod
    def _among(cls, pool: Pool, demand: Demand, tried: Collection[Worker], with_room: bool) -> Route | None:
        """Every instance can serve a request from its prompt to its end, so one whose partners are all gone does."""
        if not pool.apart:
            worker = pool.choose("decode", demand, tried, with_room=with_room)
            return None if worker is None else cls(worker, worker, "both")
        decode = pool.choose("decode", demand, tried, partner="prefill", with_room=with_room)
        if decode is None:
            prefill = pool.choose("prefill", demand, tried)
            return None if prefill is None else cls(prefill, prefill, "prefill-alone")
        if pool.is_short(demand, decode):
            return cls(decode, decode, "short")
        prefill = pool.choose("prefill", demand, tried, partner=decode)
        return cls(decode, decode, "decode-alone") if prefill is None else cls(prefill, decode, "apart")

    def with_prefill(self, worker: Worker | None) -> Route:
        """The same, where another worker has prefilled; None where nobody has."""
        return self if worker is None or worker is self.prefill else replace(self, prefill=worker)

    @property
    def workers(self) -> frozenset[Worker]:
        """One or two."""
        return frozenset((self.prefill, self.decode))

    @property
    def headers(self) -> dict[str, str]:
        """What the client learns about who served it."""
        return {
            "X-Tandem-Prefill": self.prefill.name,
            "X-Tandem-Decode": self.decode.name,
            "X-Tandem-Route": self.kind,
        }
