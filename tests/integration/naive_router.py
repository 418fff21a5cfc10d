"""A router as simple as can be: it takes turns, tries once, and passes on what comes. The chaos kit finds it out."""

from __future__ import annotations

import argparse
import itertools
import json
import uuid

import aiohttp
from aiohttp import web

REMOTE_DECODE = {"do_remote_decode": True, "do_remote_prefill": False}


class Router:
    def __init__(self, prefill: list[str], decode: list[str]) -> None:
        self.prefill, self.decode = itertools.cycle(prefill), itertools.cycle(decode)

    async def running(self, _: web.Application):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self.http:
            yield

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        headers = {"X-Request-Id": uuid.uuid4().hex}
        first = {"stream": False, "max_tokens": 1, "min_tokens": 0, "kv_transfer_params": REMOTE_DECODE}
        leg = {name: value for name, value in (body | first).items() if name != "stream_options"}
        async with self.http.post(next(self.prefill) + request.path, json=leg, headers=headers) as response:
            response.raise_for_status()
            prefilled = await response.json()
        ticket, cached = prefilled["kv_transfer_params"], prefilled["usage"].get("prompt_tokens_details")
        leg = body | {"kv_transfer_params": ticket}
        async with self.http.post(next(self.decode) + request.path, json=leg, headers=headers) as response:
            if not body.get("stream"):
                answer = json.loads(await response.read())
                answer.pop("kv_transfer_params", None)
                if "usage" in answer:
                    answer["usage"] |= {"prompt_tokens_details": cached}
                return web.json_response(answer, status=response.status)
            out = web.StreamResponse(status=response.status, headers={"Content-Type": "text/event-stream"})
            await out.prepare(request)
            async for piece in response.content.iter_any():
                await out.write(piece)
            await out.write_eof()
            return out


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
