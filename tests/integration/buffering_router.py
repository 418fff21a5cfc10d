"""A router that loses nothing because it streams nothing: an answer is tried for until it is whole, and only then sent.

It proves that every row of the chaos kit can be passed, and what a router must at least do for that. No model for a
gateway: its clients wait for the last token to see the first one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from contextlib import suppress
from typing import Any

import aiohttp
from aiohttp import web

Json = dict[str, Any]

PREFILL = aiohttp.ClientTimeout(total=2.0, sock_connect=1.0)
DECODE = aiohttp.ClientTimeout(total=8.0, sock_connect=1.0, sock_read=4.0)
SUSPECT_S = 5.0
ATTEMPTS = 60
PAUSE_S = 0.2
FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError)


class Side:
    """The instances of a role, in turn; those that failed lately are left out while there are others."""

    def __init__(self, urls: list[str]) -> None:
        self._urls, self._failed, self._turn = urls, dict.fromkeys(urls, -SUSPECT_S), 0

    def order(self) -> list[str]:
        self._turn += 1
        turned = self._urls[self._turn % len(self._urls) :] + self._urls[: self._turn % len(self._urls)]
        return sorted(turned, key=self.suspect)

    def pick(self) -> str:
        return self.order()[0]

    def fail(self, url: str) -> None:
        self._failed[url] = time.monotonic()

    def suspect(self, url: str) -> bool:
        return time.monotonic() - self._failed[url] < SUSPECT_S


class Router:
    def __init__(self, prefill: list[str], decode: list[str]) -> None:
        self.prefill, self.decode = Side(prefill), Side(decode)

    async def running(self, _: web.Application):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as self.http:
            yield

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        headers = {"X-Request-Id": uuid.uuid4().hex}
        if body.get("n", 1) > 1 and not await self.native():
            return web.json_response({"error": {"message": "n: only 1", "param": "n"}}, status=400)
        for _ in range(ATTEMPTS):
            answer = await self.attempt(request.path, body, headers)
            if answer is not None:
                kind = "text/event-stream" if body.get("stream") else "application/json"
                return web.Response(body=answer, content_type=kind)
            await asyncio.sleep(PAUSE_S)
        return web.json_response({"error": {"message": "nobody answers"}}, status=503)

    async def native(self) -> bool:
        for url in (self.decode.pick(), self.decode.pick()):
            with suppress(*FAILURES):
                async with self.http.get(f"{url}/identity", timeout=PREFILL) as response:
                    return response.status == 200
        return False

    async def attempt(self, path: str, body: Json, headers: Json) -> bytes | None:
        """A whole answer, or nothing; where nobody can prefill, decode does both."""
        for holder in self.prefill.order():
            if (prefilled := await self.prefilled(holder, path, body, headers)) is not None:
                break
        ticket, details = prefilled or (None, None)
        url = self.decode.pick()
        try:
            leg = body if ticket is None else body | {"kv_transfer_params": ticket}
            async with self.http.post(url + path, json=leg, headers=headers, timeout=DECODE) as response:
                response.raise_for_status()
                answer = await response.read()
                return checked(answer, streamed=body.get("stream", False), details=details if ticket else None)
        except FAILURES:
            self.decode.fail(url)
            if ticket is not None:
                await self.release(holder, ticket)
            return None

    async def prefilled(self, holder: str, path: str, body: Json, headers: Json) -> tuple[Json, Json] | None:
        """The ticket, and what of the prompt was cached."""
        least = min(body.get("min_tokens") or 0, 1)  # at 0 the first token may end what must go on, and leave no ticket
        first: Json = {"stream": False, "max_tokens": 1, "min_tokens": least}
        first["kv_transfer_params"] = {"do_remote_decode": True}
        leg = {name: value for name, value in (body | first).items() if name != "stream_options"}
        try:
            async with self.http.post(holder + path, json=leg, headers=headers, timeout=PREFILL) as response:
                response.raise_for_status()
                answer = json.loads(await response.read())
                return answer["kv_transfer_params"] or {}, answer["usage"].get("prompt_tokens_details") or {}
        except FAILURES:
            self.prefill.fail(holder)
            return None

    async def release(self, holder: str, ticket: Json) -> None:
        with suppress(*FAILURES):
            name = {"ticket": ticket["remote_request_id"]}
            async with self.http.post(f"{holder}/tandem/release", json=name, timeout=PREFILL) as response:
                await response.read()


def checked(answer: bytes, *, streamed: bool, details: Json | None) -> bytes:
    """A whole answer without what is not for clients; of what was cached, the prefill instance knows.

    Raises:
        ValueError: It is not whole.
    """
    if not streamed:
        return json.dumps(stripped(json.loads(answer), details)).encode()
    *events, done = [line[6:] for line in answer.split(b"\n") if line]
    parts = [json.loads(event) for event in events]
    if done != b"[DONE]" or any("error" in part for part in parts):
        raise ValueError("the stream is not whole")
    told = [b"data: " + json.dumps(stripped(part, details)).encode() + b"\n\n" for part in parts]
    return b"".join(told) + b"data: [DONE]\n\n"


def stripped(part: Json, details: Json | None) -> Json:
    if details is not None and part.get("usage"):
        part["usage"]["prompt_tokens_details"] = details
    return {name: value for name, value in part.items() if name != "kv_transfer_params"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prefill", action="append")
    parser.add_argument("--decode", action="append")
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    router, app = Router(given.prefill, given.decode), web.Application()
    app.cleanup_ctx.append(router.running)
    app.router.add_post("/v1/completions", router.generate)
    app.router.add_post("/v1/chat/completions", router.generate)
    web.run_app(app, host="127.0.0.1", port=given.port, print=None, access_log=None, handler_cancellation=True)


if __name__ == "__main__":
    main()
