"""What the gateway does at each of its endpoints."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from tandem.errors import RequestError
from tandem.gateway.attempt import Attempt
from tandem.gateway.front import Front
from tandem.gateway.keys import Keys
from tandem.gateway.legs import Legs
from tandem.gateway.length_limit import LengthLimit
from tandem.gateway.metrics import Count, GatewayMetrics
from tandem.gateway.pool import Pool
from tandem.gateway.worker_client import WorkerClient
from tandem.protocol.http import json_response, openai_errors, read_body, refusal_response, request_id
from tandem.protocol.seat_name import without_seat_names

log = logging.getLogger(__name__)


class Service:
    """The endpoints, over the parts they are made of."""

    def __init__(
        self,
        *,
        front: Front,
        pool: Pool,
        client: WorkerClient,
        legs: Legs,
        metrics: GatewayMetrics,
        limit: LengthLimit | None,
        keys: Keys | None,
    ) -> None:
        self._front = front
        self._limit = limit
        self._keys = keys
        self._pool = pool
        self._client = client
        self._legs = legs
        self._metrics = metrics

    def application(self, body_limit: int) -> web.Application:
        """The aiohttp application; bodies over `body_limit` bytes are refused with 413."""
        app = web.Application(middlewares=[openai_errors], client_max_size=body_limit)
        for path in self._front.generating:
            app.router.add_post(path, self.generate)
        if self._front.lists_models:
            app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        return app

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for generated text."""
        headers = {"X-Request-Id": request_id(request.headers)}
        try:
            with self._metrics.request(request.path) as count, self._admitted(request):
                return await self._generate(request, headers, count)
        except RequestError as error:
            response = refusal_response(error)
            response.headers.update(headers)
            return response
        except (asyncio.CancelledError, ConnectionError):
            log.info("%s %s 499: its client has left", request.path, headers["X-Request-Id"])
            raise

    @contextmanager
    def _admitted(self, request: web.Request) -> Iterator[None]:
        """Let a request in that has a key, where keys are wanted; a key of ours is not passed on.

        Raises:
            RequestError: 401 or 429.
        """
        if self._keys is None:
            yield
            return
        with self._keys.admitted(request.headers) as name:
            self._metrics.asked(name)
            yield

    def _passed_on(self, request: web.Request) -> dict[str, str]:
        """The client's headers for the instances: without its key, where that is between it and us."""
        return {name: value for name, value in request.headers.items() if self._keys is None or name != "Authorization"}

    async def _generate(self, request: web.Request, headers: dict[str, str], count: Count) -> web.StreamResponse:
        """Fills `headers` as it learns what the client should know, so that a refusal says it too."""
        asked = self._front.begin(
            headers["X-Request-Id"], request.path, await read_body(request), self._passed_on(request)
        )
        if self._limit is not None:
            await self._limit.check(asked.body)
        attempt = Attempt.plan(self._pool)
        headers |= attempt.headers
        async with attempt.answer(self._legs, asked) as answer:
            return await self._front.hand_on(request, asked, attempt.decode, answer, headers, count)

    async def models(self, request: web.Request) -> web.Response:
        """What a decode worker says it serves."""
        with self._admitted(request):
            return await self._models(request)

    async def _models(self, request: web.Request) -> web.Response:
        worker = self._pool.pick("decode" if self._pool.apart else "both")
        passed_on = {name: value for name, value in self._passed_on(request).items() if name == "Authorization"}
        async with self._client.get(worker, "/v1/models", passed_on) as answer:
            listed = without_seat_names(await self._client.read(worker, answer))
            return web.Response(body=listed, content_type="application/json")

    async def health(self, _: web.Request) -> web.Response:
        """200 when requests are taken and every needed role has somebody up, else 503 and what is missing."""
        missing = self._pool.missing
        workers = {worker.name: "up" if self._pool.is_up(worker) else "down" for worker in self._pool.workers}
        ready = self._pool.is_open and not missing
        status = "ok" if ready else "unavailable" if self._pool.is_open else "starting"
        return json_response({"status": status, "missing": missing, "workers": workers}, 200 if ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """The page for Prometheus."""
        return web.Response(body=self._metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})
