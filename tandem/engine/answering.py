"""The updates of one request become its HTTP answer, whole or streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

import msgspec
from aiohttp import web

from tandem.engine.request import Request
from tandem.engine.spelling import Spelling
from tandem.engine.update import Update
from tandem.errors import RequestError
from tandem.protocol import sse
from tandem.protocol.answers import ENDINGS, Answer, AnswerHead, Piece, Usage, error_answer
from tandem.protocol.http import json_response
from tandem.protocol.openai import GenerationRequest
from tandem.text.tokenizer import Tokenizer


class Answering:
    """One answer in the making.

    Args:
        head: What every piece of it repeats.
        body: What the client asked for.
        request: What the engine was asked for.
        tokenizer: Puts log-probabilities into words.
    """

    def __init__(self, head: AnswerHead, body: GenerationRequest, request: Request, tokenizer: Tokenizer) -> None:
        self._head = head
        self._body = body
        self._request = request
        self._tokens = len(request.output)
        self._reused = 0
        self.ticket: str | None = None
        """Name of the ticket that the answer carries, once it is known."""
        # A chat tells its prompt's ids once, a completion at every choice.
        telling = request.choices[:1] if head.endpoint == "chat" else request.choices
        self._prompts = dict.fromkeys(telling, request.prompt) if body.return_token_ids else {}
        asked = request.choices if request.sampling.logprobs is not None else ()
        self._spellings = {
            choice: Spelling(tokenizer, head.endpoint, request.start, request.output) for choice in asked
        }

    async def whole(self, http: web.Request, updates: AsyncIterator[Update]) -> web.StreamResponse:
        """Send everything at once.

        Raises:
            RequestError: The request failed.
            ConnectionError: The client is gone.
        """
        taken: dict[int, list[Update]] = {choice: [] for choice in sorted(self._request.choices)}
        ticket = None
        async for update in updates:
            _raise_failure(update)
            ticket = self._ticket(update) or ticket
            self._tokens += len(update.tokens)
            self._reused = max(self._reused, update.reused)
            taken[self._choice(update)].append(update)
        pieces = [self._piece(choice, of_choice) for choice, of_choice in taken.items()]
        response = json_response(self._head.whole(pieces, self._usage, ticket))
        # Here and not by the server, so that whoever called knows whether it could be written.
        await response.prepare(http)
        await response.write_eof()
        return response

    async def stream(self, http: web.Request, updates: AsyncIterator[Update]) -> web.StreamResponse:
        """Send every update at once; a failure after the first one becomes an event, the last one and without `[DONE]`.

        Raises:
            RequestError: The request failed before anything was sent.
            ConnectionError: The client is gone.
        """
        first = await anext(updates)
        # Only now is it certain that there is an answer, so only now may the status be 200.
        _raise_failure(first)
        response = web.StreamResponse(headers=sse.HEADERS | _timing(first))
        await response.prepare(http)
        for role in self._roles():
            await response.write(sse.event(role))
        update: Update | None = first
        while update is not None and update.error is None:
            self._tokens += len(update.tokens)
            self._reused = max(self._reused, update.reused)
            if self._worth_telling(update):
                piece = self._piece(self._choice(update), [update])
                await response.write(sse.event(self._head.chunk(piece, self._ticket(update))))
            update = await anext(updates, None)
        for last in self._end(update):
            await response.write(last)
        await response.write_eof()
        return response

    def _end(self, failure: Update | None) -> list[bytes]:
        """A stream's last events: `[DONE]` says that the answer is whole."""
        if failure is not None:
            return [sse.event(error_answer(_failure(failure)))]
        usage = [sse.event(self._head.usage_chunk(self._usage))] if self._body.include_usage else []
        return [*usage, sse.DONE]

    @property
    def _usage(self) -> Usage:
        """Of all choices; tokens generated elsewhere are the answer's too."""
        return Usage(len(self._request.prompt), self._tokens, self._reused)

    def _roles(self) -> list[Answer]:
        """First chunks of a chat; a client that has text already has had them."""
        if self._head.endpoint != "chat" or self._request.sent:
            return []
        pieces = [Piece(index=choice, prompt=self._prompts.pop(choice, None)) for choice in self._request.choices]
        return [self._head.role_chunk(piece) for piece in pieces]

    def _worth_telling(self, update: Update) -> bool:
        ids = bool(self._body.return_token_ids and update.tokens)
        told = update.text or update.reason or update.logprobs or update.ticket
        return ids or bool(told)

    def _choice(self, update: Update) -> int:
        """Which choice an update is told at: an early ticket is every choice's and stands at the first one."""
        return update.choice if update.tokens or update.reason else self._request.choices[0]

    def _piece(self, choice: int, updates: Sequence[Update]) -> Piece:
        tokens = [token for update in updates for token in update.tokens]
        logprobs = [one for update in updates for one in update.logprobs]
        return Piece(
            text="".join(update.text for update in updates),
            reason=updates[-1].reason,
            index=choice,
            logprobs=self._spellings[choice].tell(logprobs) if logprobs else None,
            tokens=tokens if self._body.return_token_ids else None,
            prompt=self._prompts.pop(choice, None),
        )

    def _ticket(self, update: Update) -> Answer | None:
        if update.ticket is None:
            return None
        self.ticket = update.ticket.remote_request_id
        return msgspec.to_builtins(update.ticket)  # type: ignore[no-any-return]


def _timing(first: Update) -> dict[str, str]:
    """How long it took from keys and values that were pulled to the first token. Source: W3C, Server Timing."""
    if first.pulled_at is None:
        return {}
    return {"Server-Timing": f"decode;dur={1000 * (time.monotonic() - first.pulled_at):.3f}"}


def _raise_failure(update: Update) -> None:
    if update.error is not None:
        raise _failure(update)


def _failure(update: Update) -> RequestError:
    return RequestError(update.error or "", status=update.status, code=ENDINGS.get(update.status, "generation_failed"))
