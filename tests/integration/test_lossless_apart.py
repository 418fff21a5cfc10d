"""Real instances behind the gateway, killed and frozen under open streams: every answer is what it would have been."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chaos.fleet import Shape
from chaos.instance import START, Instance
from chaos.standing import Standing, standing

from tandem.gateway.config import GatewayConfig
from tandem.gateway.delivery import bodies
from tandem.gateway.server import Gateway
from tandem.gateway.workers.patience import Patience
from tandem.protocol.sse import EventParser

SHAPE = Shape(
    transports=("auto",),
    policies=("fail",),
    options={"max-model-len": 512, "kv-cache-gib": 0.02, "max-num-seqs": 16, "max-num-batched-tokens": 32},
)
PATIENCE = Patience(suspect_seconds=0.5, probe_seconds=0.5)
LONG = {"max_tokens": 200, "ignore_eos": True}
"""Some seconds of an answer, for so many of them at a time."""
COMPLETION = {"prompt": "def main(", "stream_options": {"include_usage": True}} | LONG
CHAT = {"messages": [{"role": "user", "content": "What does textwrap do?"}], "seed": 5, "temperature": 0.9} | LONG
BODIES: dict[str, dict[str, Any]] = {
    "greedy": COMPLETION | {"temperature": 0},
    "seeded": COMPLETION | {"seed": 9, "temperature": 0.9, "top_p": 0.9, "top_k": 50},
    "unseeded": COMPLETION | {"temperature": 0.8},
    "penalties": COMPLETION
    | {"seed": 3, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    "log-probabilities": COMPLETION | {"seed": 4, "logprobs": 3},
    "choices": COMPLETION | {"seed": 8, "n": 2},
    "ids": COMPLETION | {"seed": 6, "return_token_ids": True},
    "least": COMPLETION | {"seed": 7, "min_tokens": 150, "max_tokens": 160, "ignore_eos": False},
    "chat": CHAT,
    "chat, log-probabilities": CHAT | {"logprobs": True, "top_logprobs": 2},
}


@dataclass
class Told:
    """What a client got of one choice."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def add(self, choice: dict[str, Any]) -> None:
        self.text += choice.get("text") or choice.get("delta", {}).get("content") or ""
        self.tokens += choice.get("token_ids") or ()
        self.reasons += [choice["finish_reason"]] if choice.get("finish_reason") else []
        told = choice.get("logprobs") or {}
        self.logprobs += told.get("token_logprobs") or [one["logprob"] for one in told.get("content") or ()]
        self.offsets += told.get("text_offset") or ()


@dataclass
class Stream:
    """A stream as it comes."""

    choices: defaultdict[int, Told] = field(default_factory=lambda: defaultdict(Told))
    ids: set[str] = field(default_factory=set)
    usages: list[dict[str, int]] = field(default_factory=list)
    is_done: bool = False
    events: int = 0
    route: str = ""

    async def read(self, rig: Rig, body: dict[str, Any]) -> Stream:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        parser = EventParser()
        async with rig.there.fleet.http.post(rig.gateway.url + path, json=body | {"stream": True}) as response:
            assert response.status == 200, await response.text()
            self.route = response.headers["X-Tandem-Route"]
            async for piece in response.content.iter_any():
                for data in parser.feed(piece):
                    self._add(data)
        return self

    def _add(self, data: bytes) -> None:
        assert not self.is_done
        if data == b"[DONE]":
            self.is_done = True
            return
        event = json.loads(data)
        assert "error" not in event, event
        self.events += 1
        self.ids.add(event["id"])
        # What was cached depends on who was asked what before.
        usage = event.get("usage") or {}
        self.usages += [{name: usage[name] for name in usage if name.endswith("_tokens")}] if usage else []
        for choice in event["choices"]:
            self.choices[choice["index"]].add(choice)

    def check(self, undisturbed: Stream) -> None:
        """It is what it would have been."""
        assert self.is_done
        assert len(self.ids) == 1
        assert self.usages == undisturbed.usages
        assert self.choices.keys() == undisturbed.choices.keys()
        for index, expected in undisturbed.choices.items():
            told = self.choices[index]
            assert told.text == expected.text
            assert (told.tokens, told.offsets, told.reasons) == (expected.tokens, expected.offsets, expected.reasons)
            assert told.logprobs == pytest.approx(expected.logprobs, abs=1e-3)


@dataclass
class Rig:
    """A gateway in front of a fleet."""

    there: Standing
    gateway: Gateway

    def worker(self, instance: Instance) -> Any:
        return next(one for one in self.gateway.pool.workers if one.name == instance.name)

    def mark(self, instance: Instance, *, up: bool) -> None:
        self.gateway.pool.mark(self.worker(instance), up=up)

    async def undisturbed(self, body: dict[str, Any]) -> Stream:
        told = await Stream().read(self, body)
        assert told.route == "apart"
        return told


@pytest.fixture(scope="module")
def there(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(SHAPE, tiny_model, tmp_path_factory.mktemp("lossless")) as made:
        yield made


@asynccontextmanager
async def in_front(there: Standing) -> AsyncIterator[Rig]:
    """The gateway looks once who is up; later, tests say it, and stalls do."""
    urls = {side: tuple(one.url for one in there.fleet.of(side)) for side in ("prefill", "decode")}
    gateway = Gateway(GatewayConfig(**urls, port=0, grace_s=0.1, patience=PATIENCE, health_period_s=3600.0))
    await gateway.start()
    try:
        yield Rig(there, gateway)
    finally:
        await gateway.stop()


@pytest.fixture(autouse=True)
def same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gateway draws a seed it is always this one, so that a client without one can compare."""
    monkeypatch.setattr(bodies.secrets, "randbits", lambda _: 77)


def kill(instance: Instance) -> None:
    instance.condemn()
    instance.kill()


def freeze(instance: Instance) -> None:
    instance.freeze()


async def recover(there: Standing, instance: Instance) -> None:
    """Bring it back, and see that nobody holds a block."""
    if instance.ended is not None:
        await there.fleet.revive(instance)
    instance.thaw()
    assert await there.fleet.quiet(20) is not None, await there.fleet.audits()


@pytest.mark.parametrize("strike", [kill, pytest.param(freeze, marks=pytest.mark.full)])
def test_streams_of_a_decode_instance_that_is_struck_go_on_as_they_were(
    there: Standing, strike: Callable[[Instance], None]
) -> None:
    struck, other = there.fleet.of("decode")

    async def scenario() -> None:
        async with in_front(there) as rig:
            expected = {name: await rig.undisturbed(body) for name, body in BODIES.items()}
            stopped = stops(expected["seeded"])
            bodies = BODIES | {"stopped": stopped}
            expected["stopped"] = await rig.undisturbed(stopped)
            assert expected["stopped"].choices[0].reasons == ["stop"]
            rig.mark(other, up=False)
            streams = {name: Stream() for name in bodies}
            reading = [asyncio.create_task(streams[name].read(rig, body)) for name, body in bodies.items()]
            await until(lambda: all(one.events > 20 for one in streams.values()), reading)
            assert not any(one.is_done for one in streams.values())
            rig.mark(other, up=True)
            strike(struck)
            await asyncio.gather(*reading)
            for name, told in streams.items():
                told.check(expected[name])
            page = rig.gateway.metrics.page().decode()
            assert (
                f'tandem_gateway_continuations_total{{way="resume"}} {len(bodies) + 1}.0' in page
            )  # one for each choice
        await recover(there, struck)

    there.do(within(scenario()))


def stops(seeded: Stream) -> dict[str, Any]:
    """A body whose answer ends at a stop string, late in it."""
    text = seeded.choices[0].text
    late = next(place for place in range(len(text) * 2 // 3, len(text)) if text.find(text[place : place + 5]) == place)
    return BODIES["seeded"] | {"stop": [text[late : late + 5]]}


@pytest.mark.full
@pytest.mark.parametrize("strike", [kill, freeze])
def test_prompts_of_a_prefill_instance_that_is_struck_are_read_by_another(
    there: Standing, strike: Callable[[Instance], None]
) -> None:
    struck, other = there.fleet.of("prefill")
    bodies = [
        COMPLETION | {"prompt": [3 + (place * 7 + one) % 500 for place in range(480)], "max_tokens": 8, "seed": one}
        for one in range(8)
    ]

    async def scenario() -> None:
        async with in_front(there) as rig:
            rig.mark(other, up=False)
            streams = [Stream() for _ in bodies]
            reading = [asyncio.create_task(one.read(rig, body)) for one, body in zip(streams, bodies, strict=True)]
            vitals = rig.gateway.pool.vitals(rig.worker(struck))
            await until(lambda: len(vitals.exchanges) > len(bodies) / 2, reading)
            rig.mark(other, up=True)
            strike(struck)
            await asyncio.gather(*reading)
            page = rig.gateway.metrics.page().decode()
            late = r'^tandem_gateway_(?:worker_failures|hedges)_total{.*worker="([^"]+)"}'
            assert set(re.findall(late, page, re.MULTILINE)) == {"prefill-0"}
            rig.mark(struck, up=False)
            for told, body in zip(streams, bodies, strict=True):
                told.check(await rig.undisturbed(body))
        await recover(there, struck)

    there.do(within(scenario()))


def test_choices_are_those_of_one_instance(there: Standing) -> None:
    body = BODIES["seeded"] | {"n": 3, "max_tokens": 20, "logprobs": 1}
    body.pop("stream_options")

    async def scenario() -> None:
        async with in_front(there) as rig:
            _, alone = await there.ask(there.decode, body)
            async with there.fleet.http.post(f"{rig.gateway.url}/v1/completions", json=body) as response:
                apart = await response.json()
            assert [choice["text"] for choice in apart["choices"]] == [choice["text"] for choice in alone["choices"]]
            assert apart["usage"]["total_tokens"] == alone["usage"]["total_tokens"]

    there.do(within(scenario()))


async def until(holds: Callable[[], bool], reading: list[asyncio.Task[Stream]]) -> None:
    """Look again and again, while those who read do so."""
    while not holds():
        for one in reading:
            if one.done():
                one.result()
        assert not all(one.done() for one in reading)
        await asyncio.sleep(0.005)


async def within(scenario: Coroutine[Any, Any, None]) -> None:
    await asyncio.wait_for(scenario, 60 + START)  # an instance may have to come back
