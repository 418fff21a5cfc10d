"""A worker's completion on its way to a client of vLLM 0.5.0's own API: whole, or as objects that end with a NUL byte.

Each object repeats all text from the prompt on, so here every event is decoded, unlike in `relay`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import msgspec
from aiohttp import web

from tandem.errors import RequestError
from tandem.gateway.client_request import ClientRequest
from tandem.gateway.metrics import Count, GatewayMetrics
from tandem.gateway.pool import Worker
from tandem.gateway.worker_client import Reason, Response, WorkerClient
from tandem.protocol.answers import error_answer
from tandem.protocol.http import json_response
from tandem.protocol.sse import EventParser
from tandem.protocol.vllm_native import END, native_answer


class Choice(msgspec.Struct, frozen=True):
    """One choice of a completion, or what an event adds to it."""

    text: str = ""
    index: int = 0


class Completion(msgspec.Struct, frozen=True):
    """What is read of a completion, or of an event of it."""

    choices: tuple[Choice, ...] = ()
    error: Reason | None = None


class Asked(msgspec.Struct, frozen=True):
    """What is read of the request again."""

    prompt: str
    n: int


class NativeRelay:
    """Hands answers on in the shape of `POST /generate`."""

    def __init__(self, client: WorkerClient, metrics: GatewayMetrics) -> None:
        self._client = client
        self._metrics = metrics

    async def hand_on(
        self,
        request: web.Request,
        asked: ClientRequest,
        worker: Worker,
        answer: Response,
        headers: Mapping[str, str],
        count: Count,
    ) -> web.StreamResponse:
        """Hand on one answer, streamed or whole.

        Raises:
            RequestError: 502, when an answer that is not streamed breaks off or is not a completion.
            ConnectionError: The client is gone.
        """
        told = msgspec.json.decode(asked.body.whole(), type=Asked)
        if answer.content_type != "text/event-stream":
            whole = self._decoded(worker, await self._client.read(worker, answer))
            return _with(json_response(native_answer(told.prompt, [choice.text for choice in whole.choices])), headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        first = True
        try:
            async for texts in self._growing(worker, answer, told.n):
                if first:
                    first = False
                    self._metrics.ttft_seconds.observe(asked.age_s)
                await response.write(msgspec.json.encode(native_answer(told.prompt, texts)) + END)
        except RequestError as error:
            count.outcome = "broken"
            await response.write(msgspec.json.encode(error_answer(error)) + END)
        await response.write_eof()
        return response

    async def _growing(self, worker: Worker, answer: Response, choices: int) -> AsyncIterator[list[str]]:
        """The texts of all choices after each event.

        Raises:
            RequestError: The stream ended before its `[DONE]`, or said why it failed.
        """
        texts, parser, done = [""] * choices, EventParser(), False
        async for piece in self._client.pieces(worker, answer):
            for data in parser.feed(piece):
                # Read on after it, so that the worker does not take us for a client that left early.
                done = data == b"[DONE]"
                if not done:
                    self._add(worker, data, texts)
                    yield texts
        if not done:
            raise self._client.failed(worker, "ended its stream before [DONE]")

    def _add(self, worker: Worker, data: bytes, texts: list[str]) -> None:
        event = self._decoded(worker, data)
        if event.error is not None:
            raise self._client.told(worker, data)
        for choice in event.choices:
            texts[choice.index] += choice.text

    def _decoded(self, worker: Worker, raw: bytes) -> Completion:
        try:
            return msgspec.json.decode(raw, type=Completion)
        except msgspec.DecodeError:
            raise self._client.failed(worker, "answered with something other than a completion") from None


def _with(response: web.Response, headers: Mapping[str, str]) -> web.Response:
    response.headers.update(headers)
    return response
