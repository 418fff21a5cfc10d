"""A completion on its way to a client of vLLM 0.5.0's own API: whole, or as objects that end with a NUL byte.

Each object repeats all text from the prompt on, so here every event is decoded, unlike in `relay`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import msgspec
from aiohttp import web

from tandem.gateway.delivery.relay import Answer
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.client_request import ClientRequest
from tandem.protocol.answers import error_answer
from tandem.protocol.http import as_refusal, json_response
from tandem.protocol.sse import EventParser
from tandem.protocol.vllm_native import END, native_answer


class Choice(msgspec.Struct, frozen=True):
    """One choice of a completion, or what an event adds to it."""

    text: str = ""
    index: int = 0


class Completion(msgspec.Struct, frozen=True):
    """What is read of a completion, or of an event of it."""

    choices: tuple[Choice, ...] = ()


class Asked(msgspec.Struct, frozen=True):
    """What is read of the request again."""

    prompt: str
    n: int


class NativeRelay:
    """Hands answers on in the shape of `POST /generate`."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    async def hand_on(
        self, request: web.Request, asked: ClientRequest, answer: Answer, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Hand on one answer, streamed or whole.

        Raises:
            RequestError: It failed before anything was sent.
            ConnectionError: The client is gone.
        """
        told = msgspec.convert({name: asked.body.value(name) for name in ("prompt", "n")}, Asked)
        if not asked.body.streams:
            whole = msgspec.json.decode(await answer.whole(), type=Completion)
            texts = [choice.text for choice in whole.choices]
            response: web.StreamResponse = json_response(native_answer(told.prompt, texts))
            response.headers.update({**headers, **answer.headers})
            return response
        async with aclosing(_growing(answer, told.n)) as growing:
            texts = await anext(growing)
            asked.record.first_bytes(answer.exchange)
            self._metrics.first_bytes(asked.record)
            response = web.StreamResponse(headers={**headers, **answer.headers})
            await response.prepare(request)
            await response.write(msgspec.json.encode(native_answer(told.prompt, texts)) + END)
            try:
                with asked.record.stoppable():
                    async for texts in growing:
                        await response.write(msgspec.json.encode(native_answer(told.prompt, texts)) + END)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is: no answer is cut without a word
                asked.record.outcome = "broken"
                await response.write(msgspec.json.encode(error_answer(as_refusal(error, request))) + END)
        await response.write_eof()
        return response


async def _growing(answer: Answer, choices: int) -> AsyncGenerator[list[str], None]:
    """The texts of all choices after each event; raises like the answer's stream."""
    texts, parser = [""] * choices, EventParser()
    async with aclosing(answer.stream()) as pieces:
        async for piece in pieces:
            for data in parser.feed(piece):
                if data != b"[DONE]":
                    for choice in msgspec.json.decode(data, type=Completion).choices:
                        texts[choice.index] += choice.text
                    yield texts
