"""Ten thousand request bodies, in sum: none is a failure of ours, and no instance sees what a client may not set.

schemathesis makes those that the gateway's own description allows and forbids, hypothesis those that nobody describes:
hidden, doubled and escaped fields, broken bytes.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Final

import pytest
from aiohttp import web
from fake_worker import by_leg, whole_with_ticket, words
from gateway_rig import Rig, rigged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem.errors import RequestError
from tandem.gateway.request.internal import INTERNAL, XARGS
from tandem.gateway.request.openapi import document
from tandem.protocol.http import refusal_response
from tandem.protocol.openai import ChatRequest, CompletionRequest, parse

PATHS: Final = ("/v1/completions", "/v1/chat/completions")
FORBIDDEN: Final = "CLIENT-SET-THIS"
"""What a client puts into fields that are not its to set."""

SPELLED: Final = (
    '"kv_transfer_params"',
    '"\\u006bv_transfer_params"',
    '"kv\\u005ftransfer_params"',
    '"reservation"',
    '"reserv\\u0061tion"',
    '"ec_transfer_params"',
    '"\\u0065c_transfer_params"',
    '"data_parallel_rank"',
    '"data_parallel_r\\u0061nk"',
)
XARGS_SPELLED: Final = (f'"{XARGS}"', '"vllm\\u005fxargs"')


def many(examples: int) -> Callable[[Any], Any]:
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))


class Attack:
    """A gateway with strict instances, on a loop of its own, and what came of every body."""

    def __init__(self, rig: Rig, loop: asyncio.AbstractEventLoop) -> None:
        self._rig = rig
        self._loop = loop
        self.statuses: list[int] = []

    def send(self, path: str, body: bytes) -> None:
        """Send a body, and look at the answer and at what instances were sent."""
        asyncio.run_coroutine_threadsafe(self._send(path, body), self._loop).result(30)

    async def _send(self, path: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        async with self._rig.http.post(self._rig.url + path, data=body, headers=headers) as response:
            told = await response.read()
        self.statuses.append(response.status)
        seen = [one for worker in (*self._rig.prefills, *self._rig.decodes) for one in worker.bodies]
        for worker in (*self._rig.prefills, *self._rig.decodes):
            worker.bodies.clear()
            worker.headers.clear()
        assert response.status < 500 or b"deadline_exceeded" in told, (body, told)
        if response.status >= 400:
            assert set(json.loads(told)["error"]) >= {"message", "type", "param", "code"}
        assert b"kv_transfer_params" not in told or response.status >= 400
        assert not any(FORBIDDEN in json.dumps(internal(one)) for one in seen), (body, seen)


def internal(body: dict[str, Any]) -> list[Any]:
    """What stands wherever an instance looks for what a client may not set."""
    inner = body.get(XARGS)
    places = (body, inner) if isinstance(inner, dict) else (body,)
    return [place[name] for place in places for name in INTERNAL if name in place]


async def strict(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """An instance that refuses what ours would refuse, and else answers."""
    try:
        parse(await request.read(), ChatRequest if "chat" in request.path else CompletionRequest)
    except RequestError as error:
        return refusal_response(error)
    return await by_leg(whole_with_ticket, words, decode=words)(request, body)


@pytest.fixture(scope="module")
def attack() -> Iterator[Attack]:
    loop, begun, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    made: list[Attack] = []

    async def serve() -> None:
        async with rigged(strict, strict) as rig:
            made.append(Attack(rig, loop))
            begun.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert begun.wait(20)
    yield made[0]
    loop.call_soon_threadsafe(ended.set)
    thread.join()
    loop.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KNOWN: Final = sorted(
    {name for schema in document()["components"]["schemas"].values() for name in schema["properties"]}
    | {"echo", "best_of", "tools", "logit_bias", "vllm_xargs", "\ud83d\ude00"}
)

ASKED: Final = ('"prompt": "hi"', '"messages": [{"role": "user", "content": "hi"}]')


forbidden = st.builds(
    "{}: {}".format,
    st.sampled_from(SPELLED),
    st.sampled_from([f'"{FORBIDDEN}"', f'{{"remote_host": "{FORBIDDEN}"}}', f'["{FORBIDDEN}"]']),
)
where_vllm_looks = st.builds('{}: {{"mine": 1, {}}}'.format, st.sampled_from(XARGS_SPELLED), forbidden)
"""The same fields within another one."""


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object of known and unknown fields with any values, with forbidden ones at any place, perhaps broken."""
    fields = draw(st.lists(st.tuples(st.sampled_from(KNOWN) | st.text(max_size=6), json_values), max_size=5))
    said = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in fields]
    said += draw(st.lists(st.sampled_from(ASKED), max_size=2, unique=True))
    for one in draw(st.lists(forbidden | where_vllm_looks, max_size=3)):
        said.insert(draw(st.integers(0, len(said))), one)
    body = ("{" + ", ".join(said) + "}").encode(errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(body)))
        body = body[:cut] + draw(st.binary(max_size=3)) + body[cut + draw(st.integers(0, 2)) :]
    return body


def test_each_internal_field_at_each_place(attack: Attack) -> None:
    assert {json.loads(name) for name in SPELLED} == INTERNAL
    for name, asked, outer in product(SPELLED, zip(PATHS, ASKED, strict=True), (None, *XARGS_SPELLED)):
        field = f'{name}: "{FORBIDDEN}"'
        path, prompt = asked
        attack.send(path, f"{{{prompt}, {field if outer is None else f'{outer}: {{{field}}}'}}}".encode())


@pytest.mark.parametrize("path", PATHS)
def test_some_bodies(attack: Attack, path: str) -> None:
    many(60)(given(bodies())(lambda body: attack.send(path, body)))()


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", PATHS)
def test_thousands_of_bodies(attack: Attack, path: str) -> None:
    before = len(attack.statuses)
    many(3200)(given(bodies())(lambda body: attack.send(path, body)))()
    seen = attack.statuses[before:]
    assert len(seen) >= 3200
    assert {200, 400} <= set(seen)


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["positive", "negative"])
@pytest.mark.parametrize("path", PATHS)
def test_thousands_that_the_description_allows_or_forbids(attack: Attack, path: str, kind: str) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="needs the fuzz extra")
    mode = schemathesis.GenerationMode(kind)
    cases = schemathesis.openapi.from_dict(document())[path]["POST"].as_strategy(generation_mode=mode)
    before = len(attack.statuses)

    def send(case: Any) -> None:
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode()
        attack.send(path, body)

    many(1000)(given(cases)(send))()
    seen = attack.statuses[before:]
    assert len(seen) >= 900
    assert (200 if kind == "positive" else 400) in seen


def test_the_description_tells_nothing_internal(attack: Attack) -> None:
    told = json.dumps(document())
    assert not any(f'"{name}"' in told for name in INTERNAL)
    assert "\\\\A" not in told
