"""Which workers serve a request: prefill and decode apart, or one of them alone where there is nobody else."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tandem.gateway.pool import Pool
from tandem.gateway.worker import Worker

Kind = Literal["apart", "both", "decode-alone", "prefill-alone"]
"""As planned, by two or by one that does both; or by whoever is left."""


@dataclass(frozen=True)
class Route:
    """Who prefills and who decodes; the same worker where one does both."""

    prefill: Worker
    decode: Worker
    kind: Kind

    @classmethod
    def plan(cls, pool: Pool, tried: Collection[Worker] = ()) -> Route | None:
        """The next route over workers that were not tried; None where there is none.

        Every instance can serve a request from its prompt to its end, so one whose partners are all gone does.
        """
        if not pool.apart:
            worker = pool.choose("both", tried)
            return None if worker is None else cls(worker, worker, "both")
        prefill, decode = pool.choose("prefill", tried), pool.choose("decode", tried)
        if prefill is not None and decode is not None:
            return cls(prefill, decode, "apart")
        if decode is not None:
            return cls(decode, decode, "decode-alone")
        return None if prefill is None else cls(prefill, prefill, "prefill-alone")

    @property
    def without_prefill(self) -> Route:
        """The same, where the decode worker computes the prompt itself."""
        return self if self.kind != "apart" else Route(self.decode, self.decode, "decode-alone")

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
