"""An instance's HTTP side: the OpenAI routes, who it is, and how it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from aiohttp import web

from tandem.engine.answering import Answering
from tandem.engine.driver import Driver
from tandem.engine.intake import Intake
from tandem.engine.metrics import InstanceMetrics
from tandem.engine.request import Request
from tandem.engine.ticket_check import is_ticket, ticket_in
from tandem.engine.update import Update
from tandem.errors import RequestError
from tandem.protocol.answers import AnswerHead, Endpoint, error_body, model_list
from tandem.protocol.http import BODY_LIMIT, json_response, openai_errors, read_body, request_id
from tandem.protocol.identity import Identity
from tandem.protocol.json_body import decode_struct
from tandem.protocol.openai import ChatRequest, CompletionRequest, GenerationRequest, parse
from tandem.protocol.room import Release, Renew, Reserve

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
        app.router.add_post("/tandem/reserve", self._reserve)
        app.router.add_post("/tandem/renew", self._renew)
        app.router.add_post("/tandem/release", self._release)
        app.router.add_get("/tandem/audit", self._audit)
        app.on_cleanup.append(self._close)
        return app

    async def _close(self, _: web.Application) -> None:
        # What waits is dropped; what runs ends by itself, within the template's seconds.
        self._chats.shutdown(wait=False, cancel_futures=True)

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        raw = await read_body(http)
        with self._declining(raw):
            body = parse(raw, CompletionRequest)
            # In a thread: tokenising a long prompt takes seconds, and every stream would wait for it.
            request = await asyncio.to_thread(self._intake.completion, body, request_id(http.headers), arrived)
        return await self._answer(http, body, "completion", request)

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        raw = await read_body(http)
        loop = asyncio.get_running_loop()
        with self._declining(raw):
            body = parse(raw, ChatRequest)
            admit = partial(self._intake.chat, body, request_id(http.headers), arrived)
            request = await loop.run_in_executor(self._chats, admit)
        return await self._answer(http, body, "chat", request)

    async def _answer(
        self, http: web.Request, body: GenerationRequest, endpoint: Endpoint, request: Request
    ) -> web.StreamResponse:
        head = AnswerHead.begin(endpoint, request.id, body.model or self._identity.model)
        answering = Answering(head, body, request, self._intake.tokenizer)
        updates, arrived = self._timed(self._driver.generate(request)), False
        try:
            response = await (answering.stream if body.stream else answering.whole)(http, updates)
            arrived = http.transport is not None and not http.transport.is_closing()
            return response
        finally:
            try:
                # Not left to the garbage collector: a client that is gone must free its blocks now.
                await updates.aclose()
            finally:
                if answering.ticket is not None and not arrived:
                    self._driver.release(answering.ticket)

    @contextmanager
    def _declining(self, body: bytes) -> Iterator[None]:
        """The ticket of a request that is refused, or whose client leaves before it is one, is given back.

        Its holder would keep the blocks until the lease ends.
        """
        try:
            yield
        except BaseException:
            if (ticket := ticket_in(body)) is not None and is_ticket(ticket, self._intake.role):
                self._driver.decline(ticket)
            raise

    async def _timed(self, updates: AsyncGenerator[Update, None]) -> AsyncGenerator[Update, None]:
        begun, last = time.perf_counter(), dict[int, float]()
        try:
            async for update in updates:
                if update.tokens:
                    now = time.perf_counter()
                    if not last:
                        self._metrics.first_token.observe(now - begun)
                    elif update.choice in last:
                        self._metrics.between_tokens.observe(now - last[update.choice])
                    last[update.choice] = now
                yield update
        finally:
            await updates.aclose()

    async def _models(self, _: web.Request) -> web.Response:
        return json_response(model_list(self._intake.names, self._created, self._intake.max_model_len))

    async def _health(self, _: web.Request) -> web.Response:
        if self._driver.alive:
            return json_response({"status": "ok", "engine_id": self._identity.engine_id})
        return json_response(error_body("the engine has stopped; restart the instance", status=503), status=503)

    async def _who(self, _: web.Request) -> web.Response:
        return json_response(self._identity)

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _reserve(self, http: web.Request) -> web.Response:
        tokens, most = decode_struct(await read_body(http), Reserve).tokens, self._intake.max_model_len
        if tokens > most:
            raise RequestError(f"tokens: {tokens} is outside 1..{most}; say how many shall have room", param="tokens")
        reserved = self._driver.reserve(tokens)
        if reserved is None:
            message = f"there is no room for {tokens} more tokens now; try again or elsewhere"
            raise RequestError(message, status=503, code="no_room")
        name, seconds = reserved
        return json_response({"reservation": name, "expires_in": seconds})

    async def _renew(self, http: web.Request) -> web.Response:
        asked = decode_struct(await read_body(http), Renew)
        return json_response({"renewed": self._driver.renew(asked.ticket)})

    async def _release(self, http: web.Request) -> web.Response:
        asked = decode_struct(await read_body(http), Release)
        return json_response({"released": self._driver.release(asked.name)})

    async def _audit(self, _: web.Request) -> web.Response:
        return json_response(self._driver.audit())
