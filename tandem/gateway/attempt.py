"""One try at one request, on one choice of workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tandem.gateway.client_request import ClientRequest
from tandem.gateway.legs import Legs
from tandem.gateway.pool import Pool, Worker
from tandem.gateway.worker_client import Response


@dataclass(frozen=True)
class Attempt:
    """Who prefills and who decodes; the same worker where one does both."""

    prefill: Worker
    decode: Worker

    @classmethod
    def plan(cls, pool: Pool) -> Attempt:
        """Choose workers.

        Raises:
            RequestError: 503, when a needed role has nobody up.
        """
        if pool.apart:
            return cls(pool.pick("prefill"), pool.pick("decode"))
        worker = pool.pick("both")
        return cls(worker, worker)

    @property
    def apart(self) -> bool:
        """Whether the request changes hands."""
        return self.prefill != self.decode

    @property
    def headers(self) -> dict[str, str]:
        """What the client learns about who served it."""
        return {"X-Tandem-Prefill": self.prefill.name, "X-Tandem-Decode": self.decode.name}

    @asynccontextmanager
    async def answer(self, legs: Legs, asked: ClientRequest) -> AsyncIterator[Response]:
        """The answer, begun with status 200, its body unread.

        Raises:
            VerbatimError: A worker answered 4xx; the client gets that answer.
            RequestError: The request cannot be served apart, or a worker did not do its part.
        """
        one, other = self.prefill, self.decode
        with asked.in_time():
            async with legs.apart(one, other, asked) if self.apart else legs.both(other, asked) as response:
                yield response
