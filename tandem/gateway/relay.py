"""A worker's answer on its way to the client: bytes are handed on as they come, no token's JSON is decoded.

Only whole lines of a stream go out, so that when it breaks off an error event can always follow. A worker's own error
event ends it likewise: nothing that follows is handed on, least of all a `[DONE]`.
TCP_NODELAY is on by default on uvloop's and asyncio's connections; nothing waits for a fuller packet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
import msgspec
from aiohttp import web

from tandem.errors import ProcessError, RequestError
from tandem.gateway.body import without_kv_params
from tandem.gateway.client_request import ClientRequest
from tandem.gateway.metrics import Count, GatewayMetrics
from tandem.gateway.pool import Worker
from tandem.gateway.worker_client import Response, WorkerClient
from tandem.protocol import sse
from tandem.protocol.answers import error_answer

TAIL: Final = 32
"""Bytes of a stream's end that are looked at for `[DONE]`."""

ERROR: Final = b'data: {"error"'
"""How an error event begins; no text can hold these bytes, because quotes in it are escaped."""


async def whole_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The stream in pieces that end with a line's end.

    Raises:
        ProcessError: The stream broke off.
    """
    rest = b""
    try:
        async for piece in content.iter_any():
            cut = piece.rfind(b"\n") + 1
            if cut:
                yield rest + piece[:cut]
            rest = piece[cut:] if cut else rest + piece
    except (aiohttp.ClientError, OSError) as error:
        raise ProcessError("broke off its stream") from error


class Relay:
    """Hands answers on, and counts their first bytes and their breaks."""

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
            RequestError: 502, when an answer that is not streamed breaks off or is not JSON.
            ConnectionError: The client is gone.
        """
        if answer.content_type != "text/event-stream":
            return await self._whole(worker, answer, headers)
        response = web.StreamResponse(headers={**sse.HEADERS, **headers})
        await response.prepare(request)
        if (failure := await self._stream(asked, worker, answer, response)) is not None:
            count.outcome = "broken"
            await response.write(b"\n" + sse.event(error_answer(failure)))
        await response.write_eof()
        return response

    async def _whole(self, worker: Worker, answer: Response, headers: Mapping[str, str]) -> web.Response:
        raw = await self._client.read(worker, answer)
        try:
            body = without_kv_params(raw)
        except msgspec.DecodeError:
            raise self._client.failed(worker, "answered with something other than JSON") from None
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _stream(
        self, asked: ClientRequest, worker: Worker, answer: Response, response: web.StreamResponse
    ) -> RequestError | None:
        """Relay to the end; what went wrong, if the stream ended before its `[DONE]`."""
        tail = b""
        failure = "ended its stream before [DONE]"
        try:
            async for lines in whole_lines(answer.content):
                if not tail:
                    self._metrics.ttft_seconds.observe(asked.age_s)
                good, error, rest = lines.partition(ERROR)
                await response.write(good)
                if error:
                    return self._client.told(worker, (error + rest).splitlines()[0].removeprefix(b"data: "))
                tail = (tail + lines)[-TAIL:]
        except ProcessError as error:
            failure = str(error)
        return None if b"[DONE]" in tail else self._client.failed(worker, failure)
