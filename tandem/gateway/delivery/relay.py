"""An answer on its way to the client: bytes are handed on as they come.

Only whole lines of a stream go out, so that when it cannot go on an error event can always follow; nothing follows
that, least of all a `[DONE]`.
TCP_NODELAY is on by default on uvloop's and asyncio's connections; nothing waits for a fuller packet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Protocol

from aiohttp import web

from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.wire.exchange import Exchange
from tandem.protocol import sse
from tandem.protocol.answers import error_answer
from tandem.protocol.http import as_refusal


class Answer(Protocol):
    """What is handed on: one delivery, or several as one."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What the client learns about who served it; filled when the answer begins."""

    @property
    def exchange(self) -> Exchange | None:
        """What brings it, once it has begun; None for several answers as one."""

    async def whole(self) -> bytes:
        """All of it."""

    def stream(self) -> AsyncGenerator[bytes, None]:
        """Its events, whole lines at a time."""


class EventStream(web.StreamResponse):
    """Headers wait for the first bytes, which are there when it is made: one packet, and one call of the system."""

    _send_headers_immediately = False


class Relay:
    """Hands answers on in the shape of OpenAI's API, and counts their first bytes and their breaks."""

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
        if not asked.body.streams:
            whole = await answer.whole()
            return web.Response(body=whole, content_type="application/json", headers={**headers, **answer.headers})
        async with aclosing(answer.stream()) as pieces:
            first = await anext(pieces)
            response = EventStream(headers={**sse.HEADERS, **headers, **answer.headers})
            await response.prepare(request)
            await response.write(first)
            await asyncio.sleep(0)  # uvloop sends when tasks pause
            asked.record.first_bytes(answer.exchange)
            self._metrics.first_bytes(asked.record)
            try:
                with asked.record.stoppable():
                    async for piece in pieces:
                        await response.write(piece)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is: no answer is cut without a word
                asked.record.outcome = "broken"
                await response.write(b"\n" + sse.event(error_answer(as_refusal(error, request))))
        await response.write_eof()
        return response
