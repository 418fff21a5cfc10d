"""An instance's HTTP side: the OpenAI routes, who it is, and how it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
from aiohttp import web

from tandem.engine.driver import Driver
from tandem.engine.intake import Intake
from tandem.engine.metrics import InstanceMetrics
from tandem.engine.sequence import Request, Update
from tandem.errors import RequestError
from tandem.protocol import sse
from tandem.protocol.answers import Answer, AnswerHead, Endpoint, Usage, error_body, model_list
from tandem.protocol.http import BODY_LIMIT, json_response, openai_errors, read_body, request_id
from tandem.protocol.identity import Identity
from tandem.protocol.json_body import decode_object
from tandem.protocol.openai import ChatRequest, CompletionRequest, GenerationRequest, parse

CHATS_AT_ONCE = 4
"""Conversations that are put into words at the same time."""


class InstanceServer:
    """Routes of one instance.

    Args:
        driver: Runs the engine.
        intake: Checks requests.
        identity: Who this instance is.
    """

    def __init__(self, driver: Driver, intake: Intake, identity: Identity) -> None:
        self._driver = driver
        self._intake = intake
        self._identity = identity
        self._metrics = InstanceMetrics(driver.engine)
        self._created = int(time.time())
        # Of their own: a folder's chat template may take its seconds, and completions do not wait for it.
        self._chats = ThreadPoolExecutor(CHATS_AT_ONCE, thread_name_prefix="chat")

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=BODY_LIMIT, middlewares=[openai_errors])
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/identity", self._who)
        app.router.add_get("/metrics", self._scrape)
        app.router.add_post("/tandem/release", self._release)
        app.on_cleanup.append(self._close)
        return app

    async def _close(self, _: web.Application) -> None:
        # What waits is dropped; what runs ends by itself, within the template's seconds.
        self._chats.shutdown(wait=False, cancel_futures=True)

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        body = parse(await read_body(http), CompletionRequest)
        # In a thread: tokenising a long prompt takes seconds, and every stream would wait for it.
        request = await asyncio.to_thread(self._intake.completion, body, request_id(http.headers))
        return await self._answer(http, body, "completion", request)

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        body = parse(await read_body(http), ChatRequest)
        loop = asyncio.get_running_loop()
        request = await loop.run_in_executor(self._chats, self._intake.chat, body, request_id(http.headers))
        return await self._answer(http, body, "chat", request)

    async def _answer(
        self, http: web.Request, body: GenerationRequest, endpoint: Endpoint, request: Request
    ) -> web.StreamResponse:
        head = AnswerHead.begin(endpoint, request.id, body.model or self._identity.model)
        updates = self._timed(self._driver.generate(request))
        try:
            if body.stream:
                return await _stream(http, head, updates, len(request.prompt), include_usage=body.include_usage)
            return json_response(await _whole(head, updates, len(request.prompt)))
        finally:
            # Not left to the garbage collector: a client that is gone must free its blocks now.
            await updates.aclose()

    async def _timed(self, updates: AsyncGenerator[Update, None]) -> AsyncGenerator[Update, None]:
        last, metric = time.perf_counter(), self._metrics.first_token
        try:
            async for update in updates:
                if update.tokens:
                    now = time.perf_counter()
                    metric.observe(now - last)
                    last, metric = now, self._metrics.between_tokens
                yield update
        finally:
            await updates.aclose()

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(model_list(self._intake.names, self._created, self._intake.max_model_len))

    async def _health(self, _: web.Request) -> web.Response:
        if self._driver.alive:
            return json_response({"status": "ok"})
        return json_response(error_body("the engine has stopped; restart the instance", status=503), status=503)

    async def _who(self, _: web.Request) -> web.Response:
        return json_response(self._identity)

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _release(self, http: web.Request) -> web.Response:
        ticket = decode_object(await read_body(http), str).get("ticket", "")
        return json_response({"released": self._driver.release(ticket)})


async def _whole(head: AnswerHead, updates: AsyncIterator[Update], prompt_tokens: int) -> Answer:
    pieces, tokens = [], 0
    async for update in updates:
        _raise_failure(update)
        pieces.append(update.text)
        tokens += update.tokens
        if update.reason is not None:
            return head.whole("".join(pieces), update.reason, Usage(prompt_tokens, tokens), _ticket(update))
    raise AssertionError("an answer ended without a reason")


async def _stream(
    http: web.Request, head: AnswerHead, updates: AsyncIterator[Update], prompt_tokens: int, *, include_usage: bool
) -> web.StreamResponse:
    first = await anext(updates)
    # Only now is it certain that there is an answer, so only now may the status be 200.
    _raise_failure(first)
    response = web.StreamResponse(headers=sse.HEADERS)
    await response.prepare(http)
    if head.endpoint == "chat":
        await response.write(sse.event(head.role_chunk()))
    tokens, update = 0, first
    while True:
        if update.error is not None:
            await response.write(sse.event(error_body(update.error, status=500)) + sse.DONE)
            return response
        tokens += update.tokens
        if update.text or update.reason is not None:
            await response.write(sse.event(head.chunk(update.text, update.reason, _ticket(update))))
        if update.reason is not None:
            break
        update = await anext(updates)
    if include_usage:
        await response.write(sse.event(head.usage_chunk(Usage(prompt_tokens, tokens))))
    await response.write(sse.DONE)
    return response


def _ticket(update: Update) -> Answer | None:
    return None if update.ticket is None else msgspec.to_builtins(update.ticket)


def _raise_failure(update: Update) -> None:
    if update.error is not None:
        raise RequestError(update.error, status=502, code="generation_failed")
