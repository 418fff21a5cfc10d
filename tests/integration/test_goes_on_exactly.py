"""Streams that break off, whatever was asked for: the answer is the right one. Of vLLM instances, at every event."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import uvloop
from fake_model import ends, resets
from fake_vllm import WORDS, Body, given, spell, told_by, vllm
from gateway_rig import BODY, CHAT, Rig, rigged

from tandem.gateway.delivery import tries

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "sail"}}]
GREEDY, SEEDED = {"temperature": 0}, {"seed": 5}
EVERYWHERE: dict[str, tuple[Body, str]] = {
    "greedy": (GREEDY, "continue"),
    "repetition_penalty": (GREEDY | {"repetition_penalty": 1.2}, "continue"),
    "max_tokens": (GREEDY | {"max_tokens": 6, "min_tokens": 4}, "continue"),
    "token ids": (GREEDY | {"return_token_ids": True}, "continue"),
    "token ids, sampled": ({"return_token_ids": True}, "replay"),
    "seed": (SEEDED, "replay"),
    "penalties": (GREEDY | {"presence_penalty": 0.5}, "replay"),
    "penalties, sampled": ({"frequency_penalty": 0.5}, "replay"),
    "stop": (GREEDY | {"stop": "d and"}, "replay"),
    "stop, sampled": ({"stop": "never said"}, "replay"),
    "stop, seed": (SEEDED | {"stop": "never said"}, "replay"),
    "bad_words": (GREEDY | {"bad_words": ["x"]}, "replay"),
    "structured": ({"structured_outputs": {"regex": ".*"}}, "replay"),
    "of tomorrow": ({"a_field_of_tomorrow": 1}, "replay"),
}
"""Fields, and the way in which the answer goes on."""
FEATURES: dict[str, dict[str, tuple[Body, str]]] = {
    COMPLETIONS: EVERYWHERE
    | {
        "logprobs": (GREEDY | {"logprobs": 1}, "replay"),
        "logprobs, sampled": ({"logprobs": 1}, "replay"),
        "echo": (GREEDY | {"echo": True}, "replay"),
        "echo, logprobs": ({"echo": True, "logprobs": 0}, "replay"),
    },
    CHATS: EVERYWHERE
    | {
        "logprobs": (GREEDY | {"logprobs": True, "top_logprobs": 2}, "continue"),
        "logprobs, sampled": ({"logprobs": True}, "replay"),
        "tools": (GREEDY | {"tools": TOOLS}, "replay"),
        "tools, sampled": ({"tools": TOOLS}, "replay"),
        "thinking": ({"chat_template_kwargs": {"enable_thinking": True}}, "replay"),
        "hidden thinking": ({"include_reasoning": False}, "replay"),
        "response_format": ({"response_format": {"type": "json_object"}}, "replay"),
    },
}
NATIVE = ("release", "early_ticket", "choices", "resume", "ticket_reuse")
RESUMED: dict[str, tuple[Body, Body]] = {
    "greedy": (GREEDY, {}),
    "sampled": ({}, {}),
    "seed": (SEEDED, {}),
    "token ids": ({"return_token_ids": True}, {}),
    "penalties": ({"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2}, {}),
    "stop": ({"stop": "d and"}, {}),
    "stop, greedy": (GREEDY | {"stop": "d and"}, {}),
    "max_tokens": ({"max_tokens": 8, "min_tokens": 7}, {}),
    "and the like": ({"top_p": 0.9, "top_k": 5, "stop_token_ids": [3], "ignore_eos": True}, {}),
    "logprobs": ({"logprobs": 1}, {"logprobs": True, "top_logprobs": 2}),
}
"""Fields for our own instances, which always go on in the same way; where a chat has others, these."""
FROM_AND_TO = ((1, 1), (1, 3), (2, 3))
"""Tokens in an event of the first and of the second worker."""


@pytest.fixture(autouse=True)
def without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "PAUSE_S", 0.01)


@dataclass
class Told:
    """What a client has of an answer."""

    texts: dict[str, str] = field(default_factory=lambda: defaultdict(str))
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    usages: list[Body] = field(default_factory=list)
    calls: int = 0


def together(events: Iterable[Body]) -> Told:
    told = Told()
    for event in events:
        told.usages += [event["usage"]] if event.get("usage") else []
        for choice in event["choices"]:
            delta = choice.get("delta") or {}
            told.texts["plain"] += choice.get("text") or delta.get("content") or ""
            told.texts["reasoning"] += delta.get("reasoning") or ""
            for call in delta.get("tool_calls", ()):
                told.calls += "id" in call
                told.texts["name"] += call["function"].get("name", "")
                told.texts["arguments"] += call["function"].get("arguments", "")
            told.tokens += choice.get("token_ids") or []
            told.reasons += [choice["finish_reason"]] if choice.get("finish_reason") else []
            logprobs = choice.get("logprobs") or {}
            told.logprobs += zip(*logprobs.values(), strict=True)
    return told


def undisturbed(body: Body) -> Told:
    """What one instance says to the request of the first leg, as far as its client has asked for it."""
    return together(told_by(body))


async def streamed(rig: Rig, path: str, body: Body) -> tuple[list[Body], Body | None]:
    """The events of an answer, and its error."""
    async with rig.post(body, path) as response:
        raw = await response.read()
        assert response.status == 200, raw
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
    errors = [event["error"] for event in events if "error" in event]
    assert raw.endswith(b"data: [DONE]\n\n") != bool(errors), raw
    told = [event for event in events if "error" not in event]
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in told}) == 1
    return told, errors[0] if errors else None


def asked(path: str, fields: Body) -> Body:
    base = {"messages": CHAT["messages"]} if path == CHATS else {"prompt": BODY["prompt"]}
    return base | {"stream": True, "max_tokens": len(WORDS), "stream_options": {"include_usage": True}} | fields


async def breaks_everywhere(path: str, fields: Body, way: str, sizes: tuple[int, int]) -> None:
    first, second = sizes
    body = asked(path, fields)
    for events in range(1, len(WORDS) // first + 3):
        async with rigged(prefill=vllm(), decode=(vllm(), vllm(at_once=second)), capabilities=()) as rig:
            rig.decode.script = vllm(events=events, blow=ends if events % 2 else resets, at_once=first)
            told, error = await streamed(rig, path, body)
            assert error is None, (events, error)
            expected = undisturbed(rig.decode.bodies[0])
            if not body.get("return_token_ids"):
                expected.tokens = []
            assert together(told) == expected, events
            if rig.decodes[1].bodies:  # else all but the end was there
                assert await rig.metric(f'tandem_gateway_continuations_total{{way="{way}"}}') == 1
                assert [len(worker.bodies) for worker in (*rig.prefills, *rig.decodes)] == [2, 1, 1]
                assert bool(given(rig.decodes[1].bodies[0])) <= (way == "continue")


@pytest.mark.parametrize(
    ("path", "feature", "sizes"),
    [
        pytest.param(path, feature, sizes, marks=[] if sizes == (2, 3) else [pytest.mark.full])
        for path, features in FEATURES.items()
        for feature in features
        for sizes in FROM_AND_TO
    ],
)
def test_at_whatever_event_it_breaks(path: str, feature: str, sizes: tuple[int, int]) -> None:
    fields, way = FEATURES[path][feature]
    uvloop.run(asyncio.wait_for(breaks_everywhere(path, fields, way, sizes), 25))


@pytest.mark.parametrize("path", [COMPLETIONS, CHATS])
@pytest.mark.parametrize("feature", RESUMED)
def test_our_own_instances_go_on_with_whatever_was_asked_for(path: str, feature: str) -> None:
    of_completions, of_chats = RESUMED[feature]
    body = asked(path, (path == CHATS and of_chats) or of_completions)

    async def scenario() -> None:
        for events in (2, 5):
            async with rigged(prefill=vllm(), decode=(vllm(), vllm()), capabilities=NATIVE) as rig:
                rig.decode.script = vllm(events=events, blow=resets)
                told, error = await streamed(rig, path, body)
                assert error is None, (events, error)
                expected = undisturbed(rig.decode.bodies[0])
                if not body.get("return_token_ids"):
                    expected.tokens = []
                assert together(told) == expected, events
                assert await rig.metric('tandem_gateway_continuations_total{way="resume"}') == 1
                again = dict(rig.decodes[1].bodies[0])
                assert len(again.pop("resume")["output_token_ids"]) == events - (path == CHATS)
                assert again == rig.decode.bodies[0]

    uvloop.run(asyncio.wait_for(scenario(), 25))


@pytest.mark.parametrize("fields", [GREEDY, SEEDED, GREEDY | {"logprobs": 1}, {"stop": "never said"}])
def test_another_answer_is_never_told(fields: Body) -> None:
    """The next worker writes something else from a token on that the client has, or from a later one."""

    async def scenario() -> None:
        for twist in range(len(WORDS)):
            async with rigged(prefill=vllm(), decode=(vllm(), vllm(twist=twist)), capabilities=()) as rig:
                rig.decode.script = vllm(events=5, blow=resets)
                told, error = await streamed(rig, COMPLETIONS, asked(COMPLETIONS, fields))
                right = undisturbed(rig.decode.bodies[0]).texts["plain"]
                if error is None:  # what it changed, nobody had seen yet
                    assert twist >= 5 or fields == GREEDY
                    continue
                assert (error["code"], twist < 5) == ("cannot_continue", True)
                assert f"token {twist + 1} of it comes out differently" in error["message"]
                assert right.startswith(together(told).texts["plain"])

    uvloop.run(asyncio.wait_for(scenario(), 25))


def test_what_is_drawn_by_chance_goes_on_by_chance_and_gets_no_seed() -> None:
    async def scenario() -> None:
        async with rigged(prefill=vllm(), decode=(vllm(), vllm()), capabilities=()) as rig:
            rig.decode.script = vllm(events=5, blow=resets)
            _, error = await streamed(rig, COMPLETIONS, asked(COMPLETIONS, {"temperature": 0.7, "top_p": 0.9}))
            assert error is None
            for worker in (rig.prefill, *rig.decodes):
                assert not any("seed" in body for body in worker.bodies)
            assert len(given(rig.decodes[1].bodies[0])) == 5

    uvloop.run(asyncio.wait_for(scenario(), 25))


@pytest.mark.parametrize("tells", [True, False])
def test_a_character_that_is_half_told_is_written_again_whole(tells: bool) -> None:
    """Whether it is, the events of several tokens do not show."""

    async def scenario() -> None:
        for path, events in product((COMPLETIONS, CHATS), (1, 2, 3)):
            async with rigged(prefill=vllm(), decode=(vllm(), vllm(at_once=2)), capabilities=()) as rig:
                rig.decode.script = vllm(events=events + (path == CHATS), blow=resets, at_once=3)
                rig.decodes[1].spell = spell if tells else None
                told, error = await streamed(rig, path, asked(path, {}))
                if tells:
                    assert error is None
                    assert re.sub(r"\d", "", together(told).texts["plain"]) == "".join(WORDS)
                    assert len(given(rig.decodes[1].bodies[0])) == 3 * events - (events == 1)
                else:
                    assert error is not None
                    assert "last character" in error["message"]

    uvloop.run(asyncio.wait_for(scenario(), 25))


def test_a_reasoning_parser_that_nobody_asked_for_is_learned_of() -> None:
    """What it makes would begin anew: from the first answer on that shows it, chats get a seed, to be written again."""

    async def scenario() -> None:
        whole, cut = vllm(thinks=True), vllm(thinks=True, events=5, blow=resets)
        async with rigged(prefill=whole, decode=(cut, whole), capabilities=()) as rig:
            _, error = await streamed(rig, CHATS, asked(CHATS, {}))
            assert error is not None
            assert (error["code"], "reasoning" in error["message"]) == ("cannot_continue", True)
            for worker in rig.decodes:
                worker.bodies.clear()
            for fields in ({}, {}):
                told, error = await streamed(rig, CHATS, asked(CHATS, fields))
                assert error is None
                body = next(worker.bodies[-1] for worker in rig.decodes if worker.bodies)
                assert together(told).texts == together(told_by(body, thinks=True)).texts
            assert await rig.metric('tandem_gateway_continuations_total{way="replay"}') >= 1
            _, error = await streamed(rig, COMPLETIONS, asked(COMPLETIONS, {}))
            assert "seed" not in rig.prefill.bodies[-1]

    uvloop.run(asyncio.wait_for(scenario(), 25))
