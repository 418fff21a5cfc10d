"""A vLLM as far as the gateway can tell, with what begins anew in a request that is given tokens as its prompt.

The next token depends on how many there are before it, and

- where it is sampled, on the seed and the token's place *in this request*; without a seed nobody can foresee it;
- with penalties, on the tokens *of this request*.

Stop strings, parsers and the places that log-probabilities tell look at the text of this request alone. So whoever goes
on with tokens where the whole request was needed gets another answer, and so does who takes a seed for none.

Asked to `resume`, it is an instance of ours: it goes on with what it would have written from the start, and refuses
tokens that are others and characters that are not as many.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from fake_model import DONE, Blow, prefilled
from fake_worker import Script, stream

PROMPT = [7, 8]
PROMPT_TEXT = "def f"
WORDS = ("Hel", "lo, ", "", "w\u00f6", "rld ", "and ", "", "\U0001f600", "sea", "s!")
"""Two tokens have no text of their own: their bytes come with the next one's."""
FIRST_ID = 1000
KINDS = 100
HALF = 5
"""Of the tokens, so many are reasoning, or the text before a call."""

Body = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """A token of an answer."""

    id: int
    text: str


def vllm(
    *,
    events: int | None = None,
    blow: Blow | None = None,
    at_once: int = 1,
    twist: int | None = None,
    thinks: bool = False,
) -> Script:
    """An instance.

    Args:
        events: A stream is struck after so many, or never.
        blow: How.
        at_once: Tokens in an event.
        twist: From this token on it writes something else.
        thinks: It was started with a reasoning parser.
    """

    async def script(request: web.Request, body: Body) -> web.StreamResponse:
        if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
            return await prefilled(request, body)
        refuse_what_was_never_written(body)
        told = [event(body, one) for one in told_by(body, at_once=at_once, twist=twist, thinks=thinks)]
        response = await stream(request, told[:events])
        await (response.write(DONE) if blow is None else blow(request, response))
        return response

    return script


def refuse_what_was_never_written(body: Body) -> None:
    resume = body.get("resume")
    if resume is None:
        return
    ids = resume["output_token_ids"]
    tokens = written(body)[: len(ids)]
    sent = Stops(body).push("".join(token.text for token in tokens), last=False)[0]
    if [token.id for token in tokens] != ids or len(sent) != resume["sent"]:
        raise web.HTTPBadRequest(text=json.dumps({"error": {"message": f"never wrote {resume}"}}))


def given(body: Body) -> list[int]:
    """The tokens of an answer that stand behind the prompt."""
    ids = (body.get("kv_transfer_params") or {}).get("prompt_token_ids") or body.get("prompt")
    return ids[len(PROMPT) :] if isinstance(ids, list) else []


def spell(tokens: list[int]) -> str:
    """The text of tokens, without regard to who has written them."""
    words = [WORDS[(token - FIRST_ID) // KINDS] for token in tokens]
    return "".join(words) + ("" if words[-1] else "\ufffd")


def written(body: Body, twist: int | None = None) -> list[Written]:
    """All tokens of this request."""
    before = len(given(body))
    limit = min(len(WORDS), before + body.get("max_tokens", len(WORDS)))
    drawn = body.get("temperature", 1) != 0
    dice = random.Random(body["seed"]) if drawn and body.get("seed") is not None else random.Random()
    penalised = body.get("presence_penalty") or body.get("frequency_penalty")
    tokens: list[Written] = []
    for place in range(before, limit):
        kind = dice.randrange(1, 50) if drawn else 0
        kind += sum(token.id for token in tokens) % 41 + len(tokens) if penalised else 0
        kind += 1 if twist is not None and place >= twist else 0
        # Behind a token that ends within a character, the rest of that character is none.
        word = "\ufffd" if place == before and place and not WORDS[place - 1] else WORDS[place]
        tokens.append(Written(FIRST_ID + place * KINDS + kind, word and f"{word}{kind or ''}"))
    return tokens


def told_by(body: Body, *, at_once: int = 1, twist: int | None = None, thinks: bool = False) -> Iterator[Body]:
    """What each event says."""
    chat, tokens = "messages" in body, written(body, twist)
    echo = body.get("echo") is True
    # Asked for token ids, a vLLM leaves the text of the prompt out.
    echoed = PROMPT_TEXT if echo and not chat and not body.get("return_token_ids") else ""
    prompt = {"prompt_token_ids": PROMPT + given(body)} if body.get("return_token_ids") else {}
    if chat:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]} | prompt
    parser, stops = Parser(body, thinks), Stops(body)
    before = tokens[: len((body.get("resume") or {}).get("output_token_ids", ()))]
    stops.push("".join(token.text for token in before), last=False)
    offset = sum(len(token.text) for token in before)
    for begin in range(len(before), len(tokens), at_once):
        group = tokens[begin : begin + at_once]
        last = begin + at_once >= len(tokens)
        text, stopped = stops.push("".join(token.text for token in group), last=last)
        choice: Body = {"index": 0} | ({"delta": parser.delta(text, group, begin)} if chat else {"text": echoed + text})
        choice["logprobs"], offset = logprobs(body, group, offset)
        choice["finish_reason"] = "stop" if stopped else parser.reason if last else None
        if body.get("return_token_ids") and body.get("include_reasoning") is not False:
            choice["token_ids"] = [token.id for token in group]
        if not chat and begin == len(before):
            choice |= prompt
        echoed = ""
        yield {"choices": [choice]}
        if stopped:
            tokens = tokens[: begin + len(group)]
            break
    if (body.get("stream_options") or {}).get("include_usage"):
        counts = {"prompt_tokens": len(PROMPT) + len(given(body)), "completion_tokens": len(tokens)}
        yield {"choices": [], "usage": counts | {"total_tokens": sum(counts.values())}}


class Stops:
    """Holds back what may yet become a stop string."""

    def __init__(self, body: Body) -> None:
        self._stop = body.get("stop")
        self._text = ""

    def push(self, text: str, *, last: bool) -> tuple[str, bool]:
        if not self._stop:
            return text, False
        self._text += text
        at = self._text.find(self._stop)
        cut = at if at >= 0 else len(self._text) if last else max(0, len(self._text) - len(self._stop) + 1)
        told, self._text = self._text[:cut], self._text[cut:]
        return told, at >= 0


class Parser:
    """Makes reasoning and calls of the text, from the beginning of the request on."""

    calls = itertools.count()

    def __init__(self, body: Body, thinks: bool) -> None:
        self._tools = bool(body.get("tools"))
        self._thinks = thinks or self._tools or "include_reasoning" in body or bool(body.get("chat_template_kwargs"))
        self._hides = body.get("include_reasoning") is False
        self._called = False
        self.reason = "tool_calls" if self._tools else "length"

    def delta(self, text: str, tokens: Sequence[Written], place: int) -> Body:
        if not self._thinks:
            return {"content": text}
        here = max(0, HALF - place)
        thought, rest = ("".join(token.text for token in part) for part in (tokens[:here], tokens[here:]))
        said: Body = {"reasoning": thought} if thought and not self._hides else {}
        if not self._tools:
            return said | ({"content": rest} if rest else {})
        return said | ({"tool_calls": [self._call(rest)]} if rest else {})

    def _call(self, text: str) -> Body:
        call: Body = {"index": 0, "function": {"arguments": text}}
        if not self._called:
            self._called = True
            call |= {"id": f"call-{next(self.calls)}", "type": "function"}
            call["function"]["name"] = "sail"
        return call


def logprobs(body: Body, tokens: Sequence[Written], offset: int) -> tuple[Body | None, int]:
    """Of some tokens, and how far the text has come with them."""
    asked = body.get("logprobs")
    if asked is None or asked is False:
        return None, offset
    if "messages" in body:
        return {"content": [{"token": token.text, "logprob": -token.id / 7} for token in tokens]}, offset
    lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
        for name, value in zip(lists, (token.text, -token.id / 7, {token.text: -1.0}, offset), strict=True):
            lists[name].append(value)
        offset += len(token.text)
    return lists, offset


def event(body: Body, said: Body) -> bytes:
    kind = "chat.completion.chunk" if "messages" in body else "text_completion"
    told = {"id": f"of-{id(body)}", "object": kind, "created": id(body) % 10**9, "model": "m"} | said
    return b"data: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n"
