"""A model as far as the gateway can tell: it always writes the same tokens, and goes on from any of them.

It serves on either side, in both dialects: ours, with `resume`, and vLLM's, where the tokens so far stand behind the
prompt. Each refuses tokens that it has not written itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from itertools import accumulate
from typing import Any

from aiohttp import web
from fake_worker import TICKET, FakeWorker, Script, stream, with_ticket

PROMPT = [7, 8]
TOKENS = ((101, "Hel"), (102, "lo, "), (103, ""), (104, "w\u00f6"), (105, ' "rld'), (106, "\U0001f600"), (107, "!"))
"""The third one has no text of its own: its bytes come with the next one's."""
TEXT = "".join(text for _, text in TOKENS)
IDS = [token for token, _ in TOKENS]
DONE = b"data: [DONE]\n\n"

Blow = Callable[[web.Request, web.StreamResponse], Awaitable[None]]
"""What happens to an answer, after some of its events."""


async def model(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Prefill or answer, whichever is asked for."""
    return await failing_after(None, ends)(request, body)


def failing_after(events: int | None, blow: Blow) -> Script:
    """The model, with an answer that is struck after so many events, or never; a prefill never is."""

    async def script(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
            return await prefilled(request, body)
        given, sent = begun(body)
        if IDS[: len(given)] != given:
            raise web.HTTPBadRequest(text=json.dumps({"error": {"message": f"wrote no {given}"}}))
        if not body.get("stream"):
            if events is not None:
                await blow(request, web.StreamResponse())
            return web.json_response(whole(body, len(given), sent))
        told = [event(body, one) for one in events_of(body, len(given), sent)]
        response = await stream(request, told[:events])
        await (response.write(DONE) if events is None else blow(request, response))
        return response

    return script


async def prefilled(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if body["stream"]:
        return await stream(request, [with_ticket(None), with_ticket("length"), DONE])
    choice = {"index": 0, "text": TOKENS[0][1], "finish_reason": "length"}
    return web.json_response({"id": "x", "choices": [choice], "kv_transfer_params": TICKET})


def begun(body: dict[str, Any]) -> tuple[list[int], int]:
    """The tokens that a request takes as given, and how many characters of them its client has."""
    if resume := body.get("resume"):
        return resume["output_token_ids"], resume["sent"]
    ids = (body.get("kv_transfer_params") or {}).get("prompt_token_ids") or body.get("prompt")
    given = ids[len(PROMPT) :] if isinstance(ids, list) else []
    return given, sum(len(text) for _, text in TOKENS[: len(given)])


def events_of(body: dict[str, Any], given: int, sent: int) -> Iterator[dict[str, Any]]:
    """The choices and the rest of each event."""
    chat, ids = "messages" in body, body.get("return_token_ids")
    limit, prompt = last(body, given), PROMPT if "resume" in body else PROMPT + IDS[:given]
    ends = list(accumulate(len(text) for _, text in TOKENS))
    if chat:
        beside = {"prompt_token_ids": prompt} if ids else {}
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]} | beside
    for place in range(given, limit):
        text = TEXT[max(sent, ends[place] - len(TOKENS[place][1])) : ends[place]]
        choice: dict[str, Any] = {"index": 0} | ({"delta": {"content": text}} if chat else {"text": text})
        choice["finish_reason"] = "length" if place == limit - 1 else None
        if ids:
            choice |= {"token_ids": [TOKENS[place][0]]}
            if not chat and place == given:
                choice |= {"prompt_token_ids": prompt}
        yield {"choices": [choice]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {"choices": [], "usage": usage(given, limit)}


def last(body: dict[str, Any], given: int) -> int:
    """How many tokens there are in the end: another engine counts those that it writes itself."""
    limit = body.get("max_tokens", len(TOKENS)) + (0 if "resume" in body else given)
    return int(min(limit, len(TOKENS)))


def usage(given: int, limit: int) -> dict[str, int]:
    """As vLLM counts: what was given belongs to the prompt."""
    prompt, answer = len(PROMPT) + given, limit - given
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def event(body: dict[str, Any], said: dict[str, Any]) -> bytes:
    """As engines write it, without needless blanks."""
    kind = "chat.completion.chunk" if "messages" in body else "text_completion"
    told = {"id": f"of-{id(body)}", "object": kind, "created": id(body) % 10**9, "model": "m"} | said
    return b"data: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n"


def whole(body: dict[str, Any], given: int, sent: int) -> dict[str, Any]:
    text = TEXT[sent:]
    said = {"message": {"role": "assistant", "content": text}} if "messages" in body else {"text": text}
    choice = {"index": 0, **said, "finish_reason": "length"}
    return {"id": "x", "object": "o", "created": 1, "choices": [choice], "usage": usage(given, last(body, given))}


async def resets(request: web.Request, _: web.StreamResponse) -> None:
    """The connection breaks, and what was not sent yet is lost."""
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError


async def breaks_an_event(request: web.Request, response: web.StreamResponse) -> None:
    """The connection closes in the middle of an event."""
    await response.write(b'data: {"id":"x","choices":[{"te')
    assert request.transport is not None
    request.transport.close()
    raise ConnectionResetError


async def fails(_: web.Request, response: web.StreamResponse) -> None:
    """An error event, and vLLM's `[DONE]` after it."""
    await response.write(b'data: {"error":{"message":"at 10.0.0.9: died","code":500}}\n\n' + DONE)


async def ends(_: web.Request, __: web.StreamResponse) -> None:
    """The stream ends cleanly, but early."""


def dies(worker: Callable[[], FakeWorker]) -> Blow:
    """The process ends, and all its connections with it."""

    async def blow(request: web.Request, response: web.StreamResponse) -> None:
        worker().dead = True
        await resets(request, response)

    return blow


def freezes(worker: Callable[[], FakeWorker]) -> Blow:
    """The process stops, and answers nobody any more."""

    async def blow(_: web.Request, __: web.StreamResponse) -> None:
        worker().frozen = True
        await asyncio.Event().wait()

    return blow
