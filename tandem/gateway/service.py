"""What the gateway does at each of its endpoints."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from tandem.errors import RequestError
from tandem.gateway.delivery.delivery import Courier
from tandem.gateway.delivery.relay import Answer
from tandem.gateway.delivery.strands import Strands
from tandem.gateway.delivery.worker_client import WorkerClient
from tandem.gateway.door.keys import Keys
from tandem.gateway.front import Front
from tandem.gateway.observability.access_log import RECORD, AccessLog
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.observability.tracing import Tracing
from tandem.gateway.request.client_request import AUTHORIZATION, PASSED_ON, ClientRequest
from tandem.gateway.request.length_limit import LengthLimit
from tandem.gateway.request.limits import Limits
from tandem.gateway.request.openapi import document
from tandem.gateway.request.record import Record
from tandem.gateway.request.refusals import check_head
from tandem.gateway.wire.exchange import WorkerError
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.budget import RetryBudget
from tandem.gateway.workers.pool import Pool
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
        courier: Courier,
        budget: RetryBudget,
        metrics: GatewayMetrics,
        length_limit: LengthLimit | None,
        limits: Limits,
        keys: Keys | None,
        passes_key_on: bool,
        access_log: AccessLog,
        tracing: Tracing | None,
    ) -> None:
        self._tracing = tracing
        self._access_log = access_log
        self._front = front
        self._length_limit = length_limit
        self._limits = limits
        self._keys = keys
        self._passed_on = PASSED_ON if passes_key_on else tuple(name for name in PASSED_ON if name != AUTHORIZATION)
        self._pool = pool
        self._client = client
        self._courier = courier
        self._budget = budget
        self._metrics = metrics
        self._open: dict[asyncio.Task[Any], Record] = {}

    def application(self) -> web.Application:
        """The aiohttp application; no other path reaches anything, least of all a worker."""
        middlewares = [*self._access_log.middlewares, openai_errors]
        app = web.Application(middlewares=middlewares, client_max_size=self._limits.max_body_bytes)
        for path in self._front.generating:
            app.router.add_post(path, self.generate)
        if self._front.lists_models:
            app.router.add_get("/v1/models", self.models, allow_head=False)
            app.router.add_get("/openapi.json", self.description)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        return app

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for generated text."""
        record = Record(id=request_id(request.headers), path=request.path)
        request[RECORD] = record
        headers = {"X-Request-Id": record.id}
        self._budget.in_flight.add()
        if self._tracing is not None:
            record.trace = self._tracing.begin(record, request.method, request.headers)
        try:
            with self._metrics.request(record), self._admitted(request, record), self._stoppable(record):
                return await self._generate(request, headers, record)
        except RequestError as error:
            response = refusal_response(error)
            response.headers.update(headers)
            return response
        except (asyncio.CancelledError, ConnectionError):
            log.info("%s %s 499: its client has left", record.path, record.id)
            raise
        finally:
            self._budget.in_flight.add(-1)
            if record.trace is not None:
                record.trace.end()

    @contextmanager
    def _stoppable(self, record: Record) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = record
        try:
            with record.stoppable():
                yield
        finally:
            del self._open[task]

    def stop(self) -> None:
        """End all that is open: what has begun with an error event, all else with status 503."""
        for task, record in self._open.items():
            record.is_stopped = True
            task.cancel()

    @contextmanager
    def _admitted(self, request: web.Request, record: Record) -> Iterator[None]:
        """Let a request in that has a key, where keys are wanted; a key of ours is not passed on.

        Raises:
            RequestError: 401 or 429.
        """
        if self._keys is None:
            yield
            return
        with self._keys.admitted(request.headers) as name:
            record.key = name
            self._metrics.asked(name)
            yield

    def _for_workers(self, request: web.Request) -> dict[str, str]:
        """The client's headers for the instances: without its key, where that is between it and us."""
        return {name: request.headers[name] for name in self._passed_on if name in request.headers}

    async def _generate(self, request: web.Request, headers: dict[str, str], record: Record) -> web.StreamResponse:
        """Fills `headers` as it learns what the client should know, so that a refusal says it too."""
        if self._front.wants_json_type:
            check_head(request)
        asked = self._front.begin(record, request.path, await read_body(request), self._for_workers(request))
        if self._length_limit is not None:
            await self._length_limit.check(asked.body)
        answer = self._answer(asked)
        try:
            return await self._front.hand_on(request, asked, answer, headers)
        finally:
            record.served_by = answer.headers
            headers |= answer.headers

    def _answer(self, asked: ClientRequest) -> Answer:
        several = asked.body.count != 1 or len(asked.body.prompts) > 1
        return Strands(self._courier, asked, self._limits) if several else self._courier.deliver(asked)

    async def models(self, request: web.Request) -> web.Response:
        """What a worker says it serves."""
        request[RECORD] = record = Record(id=request_id(request.headers), path=request.path)
        try:
            with self._admitted(request, record):
                response = await self._models(request)
        except RequestError as error:
            response = refusal_response(error)
        response.headers["X-Request-Id"] = record.id
        return response

    async def _models(self, request: web.Request) -> web.Response:
        self._pool.require_open()
        passed_on = {name: value for name, value in self._for_workers(request).items() if name == AUTHORIZATION}
        *others, last = self._pool.in_turn
        for worker in others:
            with suppress(WorkerError):
                return await self._models_of(worker, passed_on)
        return await self._models_of(last, passed_on)

    async def _models_of(self, worker: Worker, headers: Mapping[str, str]) -> web.Response:
        async with self._client.get(worker, "/v1/models", headers) as exchange:
            return web.Response(body=without_seat_names(await exchange.whole()), content_type="application/json")

    async def description(self, _: web.Request) -> web.Response:
        """The API for machines."""
        return json_response(document())

    async def health(self, _: web.Request) -> web.Response:
        """200 when requests are taken, else 503; `degraded` while a role has nobody up and the other serves alone."""
        pool = self._pool
        workers = {worker.name: "up" if pool.is_up(worker) else "down" for worker in pool.workers}
        somebody = len(pool.down) < len(pool.workers)
        status = "starting" if not pool.is_open else "unavailable" if not somebody else "ok"
        told = "degraded" if status == "ok" and pool.missing else status
        answer = {"status": told, "missing": pool.missing, "workers": workers}
        return json_response(answer, 200 if status == "ok" else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """The page for Prometheus."""
        self.refresh()
        return web.Response(body=self._metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def refresh(self) -> None:
        """Let the metrics show how things stand now."""
        self._metrics.gauges.refresh(
            self._pool, self._budget, self._courier.journals, queue=self._courier.admission.waiting
        )
