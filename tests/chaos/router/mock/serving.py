"""A request's way through a mock instance."""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from aiohttp import web

from chaos.router.mock.account import Account
from chaos.router.mock.faults import Fault, Faults, never, reset
from chaos.router.mock.generation import Generation, Step, undisturbed
from chaos.router.mock.line import EVENT_STREAM, EndedError, Line
from chaos.router.mock.puller import LoadError, Puller
from chaos.router.mock.rooms import Rooms
from chaos.router.mock.settings import Settings
from chaos.router.mock.strictness import refuse_unknown
from chaos.router.mock.tickets import Ticket, TicketBook
from chaos.router.mock.wire import MODEL, Wire, error_answer, joined
from chaos.router.mock.wish import BadRequestError, Dialect, Wish

Salts = dict[int, bytes]
"""What is wrong with the keys and values of each choice; empty where nothing is."""

DONE = b"data: [DONE]\n\n"


class ReleasedError(Exception):
    """Somebody gave the ticket back while its prefill went on."""


@dataclass(kw_only=True)
class Serving:
    """Answers requests for generated text, over the parts of one instance."""

    dialect: Dialect
    engine_id: str
    port: int
    account: Account
    faults: Faults
    tickets: TicketBook
    rooms: Rooms
    puller: Puller
    settings: Settings = field(default_factory=Settings)
    _seed: int = field(default_factory=lambda: random.SystemRandom().randrange(2**32))
    """Of requests that are sampled and bring none."""

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer one."""
        raw = await request.read()
        if self.faults.is_dead(request):
            await never()
        fault = self.faults.next()
        if fault is not None and (struck := _struck(request, fault)) is not None:
            return struck
        line = Line(request, self.faults, fault)
        chat = request.path.endswith("chat/completions")
        try:
            body = self._body(raw, chat=chat)
            wish = self._wish(body, chat=chat)
        except BadRequestError as error:
            return web.json_response(error_answer(str(error), 400, param=error.param), status=400)
        wire = Wire(wish=wish, request_id=request.headers.get("X-Request-Id") or uuid.uuid4().hex, dialect=self.dialect)
        try:
            return await self._answer(line, wire, body)
        except EndedError:
            await line.response.write_eof()
            return line.response
        except LoadError as error:
            return await self._failed(line, wish, str(error), error.status, error.code)
        except ReleasedError:
            return await self._failed(line, wish, "the KV ticket was released", 409, "ticket_released")

    def _body(self, raw: bytes, *, chat: bool) -> dict[str, Any]:
        if self.dialect == "native":
            refuse_unknown(raw, chat=chat)
        try:
            body = msgspec.json.decode(raw, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise BadRequestError(str(error), "body") from None
        if body.get("model") not in (None, MODEL):
            raise BadRequestError(f"{body['model']} is not served here", "model")
        return body

    def _wish(self, body: dict[str, Any], *, chat: bool) -> Wish:
        wish = Wish.read(body, chat=chat, dialect=self.dialect)
        return replace(wish, seed=self._seed) if wish.temperature and wish.seed is None else wish

    async def _answer(self, line: Line, wire: Wire, body: dict[str, Any]) -> web.StreamResponse:
        params = body.get("kv_transfer_params") or {}
        self.rooms.use(body.get("reservation"))
        if params.get("do_remote_decode"):
            name = params.get("remote_request_id") if self.dialect == "native" else None
            await self._prefill(line, wire, name)
        else:
            await self._decode(line, wire, params)
        return await line.end()

    # -- prefill ------------------------------------------------------------------------------------------------------

    async def _prefill(self, line: Line, wire: Wire, name: str | None) -> None:
        """Compute the prompt and answer with a ticket.

        The native engine's `max_tokens` means 1 here, and its streams begin with the ticket.
        """
        if self.dialect == "native":
            wire.wish = wire.wish.one_more()
        wish = wire.wish
        with self.account.request("prefilling"):
            ticket = self.tickets.open(wish.content, len(wish.prompt) + len(wish.output), name)
            try:
                if wish.stream:
                    await self._early(line, wire, ticket)
                await self._compute(ticket)
            except BaseException:
                self.tickets.end(ticket, "aborted")
                raise
            steps = {choice: list(Generation(wish, choice).all()) for choice in wish.choices}
            params = self._kept(ticket, steps)
            await self._tell(line, wire, {choice: joined(told) for choice, told in steps.items()}, params)

    async def _early(self, line: Line, wire: Wire, ticket: Ticket) -> None:
        await line.begin(EVENT_STREAM)
        for role in wire.roles():
            await line.event(role)
        if self.dialect == "native":
            await line.event(wire.chunk(wire.wish.choices[0], Step(), self._params(ticket)))

    async def _compute(self, ticket: Ticket) -> None:
        try:
            await asyncio.wait_for(ticket.changed.wait(), self.settings.prefill_s)
        except TimeoutError:
            return
        raise ReleasedError

    def _kept(self, ticket: Ticket, steps: dict[int, list[Step]]) -> dict[str, Any] | None:
        """The ticket, or None: vLLM keeps nothing of an answer that has ended already."""
        if self.dialect == "vllm" and any(told[-1].reason == "stop" for told in steps.values()):
            self.tickets.end(ticket, "aborted")
            return None
        self.tickets.computed(ticket)
        return self._params(ticket)

    def _params(self, ticket: Ticket) -> dict[str, Any]:
        return self.tickets.params(ticket, native=self.dialect == "native")

    async def _tell(self, line: Line, wire: Wire, steps: dict[int, Step], params: dict[str, Any] | None) -> None:
        count = sum(len(step.tokens) for step in steps.values())
        if not wire.wish.stream:
            await line.whole(wire.whole(steps, count, params))
            return
        for choice, step in steps.items():
            await line.event(wire.chunk(choice, step, params))
        await self._done(line, wire, count)

    # -- decode -------------------------------------------------------------------------------------------------------

    async def _decode(self, line: Line, wire: Wire, params: dict[str, Any]) -> None:
        wish = wire.wish
        with self.account.request("decoding"):
            salts = await self._keys(params, wish)
            if self.dialect == "vllm" and params.get("do_remote_prefill"):
                wire.cached = len(wish.prompt) - 1  # what was pulled counts as found
            generations = {choice: Generation(wish, choice, salts[choice]) for choice in wish.choices}
            if wish.stream:
                await self._stream(line, wire, generations, salts)
            else:
                await self._whole(line, wire, generations, salts)

    async def _keys(self, params: dict[str, Any], wish: Wish) -> Salts:
        """The keys and values of the prompt: somebody else's, or our own."""
        if params.get("do_remote_prefill"):
            wrong = await self.puller.take(params, wish)
            salts = dict.fromkeys(wish.choices, wrong)
            if self.dialect == "vllm":  # a ticket is one choice's
                salts |= dict.fromkeys(wish.choices[1:], wrong or b"several choices on one ticket")
            return salts
        await asyncio.sleep(self.settings.prefill_s)
        wrong = b"" if self.settings.lone or self._may_be_alone(wish) else b"no ticket"
        return dict.fromkeys(wish.choices, wrong)

    def _may_be_alone(self, wish: Wish) -> bool:
        """Whether there can be no ticket: the first token ends the answer, or it began on another instance."""
        first_only = replace(wish, max_tokens=1)
        ended = all(undisturbed(first_only, choice).reason == "stop" for choice in wish.choices)
        return ended or (self.dialect == "native" and wish.resumed)

    async def _stream(self, line: Line, wire: Wire, generations: dict[int, Generation], salts: Salts) -> None:
        await asyncio.sleep(self.settings.step_s)
        self._note(salts)
        await line.begin(EVENT_STREAM)
        for role in wire.roles():
            await line.event(role)
        going = dict(generations)
        while going:
            for choice, generation in list(going.items()):
                step = generation.step()
                self.account.tokens += len(step.tokens)
                if step.reason is not None:
                    del going[choice]
                if self._worth_telling(step, wire.wish):
                    await line.event(wire.chunk(choice, step, None if going else self._final_ticket()))
            await asyncio.sleep(self.settings.step_s if going else 0)
        await self._done(line, wire, _count(generations))

    async def _whole(self, line: Line, wire: Wire, generations: dict[int, Generation], salts: Salts) -> None:
        steps = {choice: joined(list(generation.all())) for choice, generation in generations.items()}
        await asyncio.sleep(self.settings.step_s)
        self._note(salts)
        await asyncio.sleep(self.settings.step_s * max(len(step.tokens) for step in steps.values()))
        self.account.tokens += sum(len(step.tokens) for step in steps.values())
        await line.whole(wire.whole(steps, _count(generations), self._final_ticket()))

    def _note(self, salts: Salts) -> None:
        """Only what is answered counts: a request may be sent to end a ticket, and left at once."""
        self.account.misuse += sorted({wrong.decode() for wrong in salts.values() if wrong})

    def _worth_telling(self, step: Step, wish: Wish) -> bool:
        """vLLM tells every token, the native engine those that show something."""
        return bool(self.dialect == "vllm" or step.text or step.reason or step.logprobs or wish.token_ids)

    def _final_ticket(self) -> dict[str, Any] | None:
        if not self.settings.final_ticket:
            return None
        return {"do_remote_prefill": True, "remote_engine_id": self.engine_id, "remote_port": self.port}

    # -- both ---------------------------------------------------------------------------------------------------------

    async def _done(self, line: Line, wire: Wire, count: int) -> None:
        if wire.wish.usage:
            await line.event(wire.usage(count))
        await line.write(DONE)

    async def _failed(self, line: Line, wish: Wish, message: str, status: int, code: str | int) -> web.StreamResponse:
        """vLLM has sent status 200 by the time its stream fails, and ends even then with [DONE]."""
        error = error_answer(message, status, code)
        begun = line.response.prepared
        if not begun and not (self.dialect == "vllm" and wish.stream):
            return web.json_response(error, status=status)
        if not begun:
            await line.begin(EVENT_STREAM)
        await line.event(error)
        if self.dialect == "vllm":
            await line.write(DONE)
        return await line.end()


def _count(generations: dict[int, Generation]) -> int:
    """Tokens of all choices; those of another instance are the answer's, too."""
    return sum(len(generation.output) for generation in generations.values())


def _struck(request: web.Request, fault: Fault) -> web.Response | None:
    """What is answered in place of an answer, by faults that let nothing begin."""
    if fault.kind == "reset":
        raise reset(request)
    if fault.kind == "empty":
        return web.Response(body=b"", content_type="application/json")
    if fault.kind == "status":
        return web.json_response(error_answer("Internal server error", fault.status), status=fault.status)
    return None
