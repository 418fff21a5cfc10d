"""The way of one answer to its client, and what may happen to it there."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import web

from chaos.router.mock.faults import FLUSH_S, Fault, Faults, never, reset

EVENT_STREAM = "text/event-stream; charset=utf-8"


class Line:
    """Writes an answer.

    Args:
        request: Whose answer it is.
        faults: Of this process.
        fault: What happens to this answer.
    """

    def __init__(self, request: web.Request, faults: Faults, fault: Fault | None) -> None:
        self._request = request
        self._faults = faults
        self._fault = fault
        self._written = 0
        self.response = web.StreamResponse()

    async def begin(self, content_type: str, length: int | None = None) -> None:
        """Send status 200 and the headers."""
        self.response.headers["Content-Type"] = content_type
        if length is not None and not self._is("cut cleanly"):
            self.response.content_length = length
        if not self._faults.is_dead(self._request):
            await self.response.prepare(self._request)

    async def event(self, payload: Any) -> None:
        """One event of a stream.

        Raises:
            ConnectionError: The client is gone, or was reset.
            EndedError: The answer ends here.
        """
        await self.write(b"data: " + msgspec.json.encode(payload) + b"\n\n")

    async def write(self, data: bytes) -> None:
        """See `event`."""
        if self._fault is not None and self._written >= self._fault.after:
            await self._break(data)
        self._written += 1
        if self._faults.is_dead(self._request):
            return
        if self._is("slow"):
            await self._dribble(data)
        else:
            await self.response.write(data)

    async def end(self) -> web.StreamResponse:
        """The answer is whole; on a dead connection nobody ever learns that."""
        if self._faults.is_dead(self._request):
            await never()
        await self.response.write_eof()
        return self.response

    async def whole(self, payload: Any) -> None:
        """An answer that is not streamed; it is cut in its middle, whatever `after` says."""
        data = msgspec.json.encode(payload)
        await self.begin("application/json", len(data))
        if self._is("cut cleanly"):
            await self.response.write(data[: len(data) // 2])
        if self._fault is not None:
            await self._break(data)
        await self.write(data)

    def _is(self, kind: str) -> bool:
        return self._fault is not None and self._fault.kind == kind

    async def _break(self, data: bytes) -> None:
        if self._is("cut"):
            await self.response.write(data[: len(data) // 2])
            await asyncio.sleep(FLUSH_S)
            raise reset(self._request)
        if self._is("cut cleanly"):
            raise EndedError

    async def _dribble(self, data: bytes) -> None:
        for byte in data:
            await self.response.write(bytes([byte]))
            await asyncio.sleep(1)


class EndedError(Exception):
    """The answer was ended early on purpose."""
