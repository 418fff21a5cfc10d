"""Several answers as one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import pytest

from tandem.errors import RequestError
from tandem.gateway.delivery.delivery import Courier
from tandem.gateway.delivery.strands import Strands
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.request.limits import Limits
from tandem.gateway.request.record import Record
from tandem.gateway.request.tally import DETAILS
from tandem.protocol import sse

Told = list[dict[str, Any] | bytes | Exception]


class FakeDelivery:
    """Tells what it was given, in small pieces."""

    def __init__(self, asked: ClientRequest, choice: int, told: Told) -> None:
        self.asked = asked
        self.choice = choice
        self.told = told
        self.headers: dict[str, str] = {}
        self.is_open = False

    async def whole(self) -> bytes:
        await asyncio.sleep(0)
        self.headers = {"X-Tandem-Decode": f"decode-{self.choice}"}
        [said] = self.told
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, bytes) else json.dumps(said).encode()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        self.is_open = True
        try:
            for one in self.told:
                await asyncio.sleep(0)
                if isinstance(one, Exception):
                    raise one
                raw = one if isinstance(one, bytes) else sse.event(one)
                self.headers = {"X-Tandem-Decode": f"decode-{self.choice}"}
                yield raw[:7]
                yield raw[7:]
            yield sse.DONE
        finally:
            self.is_open = False


class FakeCourier:
    """Deliveries that tell one list each, in order."""

    def __init__(self, *told: Told) -> None:
        self._told = list(told)
        self.made: list[FakeDelivery] = []

    def deliver(self, asked: ClientRequest, choice: int = 0) -> FakeDelivery:
        self.made.append(FakeDelivery(asked, choice, self._told[len(self.made)] if self._told else []))
        return self.made[-1]


def strands(courier: FakeCourier, **fields: Any) -> Strands:
    raw = json.dumps({"prompt": "x", **fields}).encode()
    asked = ClientRequest.begin(Record(id="i", path="/v1/completions"), "/v1/completions", raw, {})
    return Strands(cast(Courier, courier), asked, Limits())


def event(text: str, **more: Any) -> dict[str, Any]:
    return {"id": f"of-{text}", "created": len(text), "choices": [{"index": 0, "text": text}], **more}


def usage(prompt: int, answer: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def trial(scenario: Callable[[], Any]) -> Callable[[], None]:
    def test() -> None:
        asyncio.run(asyncio.wait_for(scenario(), 5))

    test.__name__ = scenario.__name__
    return test


async def read(several: Strands) -> list[dict[str, Any]]:
    raw = b"".join([piece async for piece in several.stream()])
    *told, done, rest = raw.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(one.removeprefix(b"data: ")) for one in told]


@trial
async def test_whole_answers_become_one() -> None:
    prompts = {"a": 3, "b": 3, "c": 5, "d": 5}
    told: list[Told] = [[event(text) | {"usage": usage(prompt, 2)}] for text, prompt in prompts.items()]
    several = strands(FakeCourier(*told), n=2, prompt=["x", "y"])
    answer = json.loads(await several.whole())
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate("abcd"))
    assert answer["usage"] == usage(8, 8)
    assert answer["id"] == "of-a"
    assert several.headers == {"X-Tandem-Decode": "decode-0"}


@trial
async def test_answers_without_counts_become_one_without() -> None:
    answer = json.loads(await strands(FakeCourier([event("a")], [event("b")]), n=2).whole())
    assert "usage" not in answer


@trial
async def test_streams_become_one() -> None:
    told: list[Told] = [
        [event("a"), event("aa"), {"id": "of-0", "choices": [], "usage": usage(3, 2)}],
        [event("b"), {"id": "of-1", "choices": [], "usage": usage(3, 1)}],
    ]
    events = await read(strands(FakeCourier(*told), n=2, stream=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for one in events[:-1]:
        for choice in one["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["aaa", "b"]
    assert len({(one["id"], one["created"]) for one in events}) == 1
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], usage(3, 3))
    assert len(events) == 4


@pytest.mark.parametrize("reason", [RequestError("no", status=502), AssertionError("no")], ids=["refusal", "bug"])
def test_what_fails_one_fails_all_and_ends_the_others(reason: Exception) -> None:
    @trial
    async def scenario() -> None:
        courier = FakeCourier([event("a"), *[event("x")] * 1000], [event("b"), reason])
        with pytest.raises(type(reason), match="no"):
            await read(strands(courier, n=2, stream=True))
        assert not any(one.is_open for one in courier.made)
        with pytest.raises(type(reason), match="no"):
            await strands(FakeCourier([event("a")], [reason]), n=2).whole()

    scenario()


@trial
async def test_a_client_that_leaves_ends_all() -> None:
    courier = FakeCourier([event("a")] * 1000, [event("b")] * 1000)
    stream = strands(courier, n=2, stream=True).stream()
    await anext(stream)
    await stream.aclose()
    assert not any(one.is_open for one in courier.made)


@trial
async def test_what_nobody_can_read_is_a_failure_and_no_silence() -> None:
    for told in ([b"data: oops\n\n"], [b"data: []\n\n"]):
        with pytest.raises(RequestError, match="other than OpenAI's JSON"):
            await read(strands(FakeCourier([event("a")], told), n=2, stream=True))
    for odd in (b"[]", b'{"choices": 1}', b'{"id": "x"}', json.dumps(event("b") | {"usage": {"x": 1}}).encode()):
        told = [event("a") | {"usage": usage(1, 1)}], [odd]
        with pytest.raises(RequestError, match="other than OpenAI's JSON"):
            await strands(FakeCourier(*told), n=2).whole()
    told = [event("a"), {"choices": [], "usage": {"prompt_tokens": "many"}}]
    with pytest.raises(RequestError, match="other than OpenAI's JSON"):
        await read(strands(FakeCourier(told, told), n=2, stream=True, stream_options={"include_usage": True}))


@pytest.mark.parametrize(
    ("fields", "single"),
    [
        ({"n": 2}, {"prompt": "x"}),
        ({"n": 2, "best_of": 2}, {"prompt": "x"}),
        ({"n": 2, "best_of": 1}, {"prompt": "x"}),
        ({"n": 2, "best_of": 3}, {"prompt": "x", "best_of": 3}),
        ({"n": 2, "seed": 4}, {"prompt": "x", "seed": 4}),
    ],
)
def test_each_choice_is_asked_for_by_itself(fields: dict[str, Any], single: dict[str, Any]) -> None:
    courier = FakeCourier()
    strands(courier, **fields)
    assert [json.loads(one.asked.body.decode_leg(None, None)) for one in courier.made] == [single] * 2
    assert [one.choice for one in courier.made] == [0, 1]


def test_several_do_not_go_on_from_one() -> None:
    with pytest.raises(RequestError, match="resume each by itself"):
        strands(FakeCourier(), n=2, resume={"output_token_ids": [1], "sent": 1})


def test_prompt_by_prompt() -> None:
    courier = FakeCourier()
    strands(courier, prompt=[[1], [2, 3]], n=2)
    assert [(one.asked.body.value("prompt"), one.choice) for one in courier.made] == [
        ([1], 0),
        ([1], 1),
        ([2, 3], 0),
        ([2, 3], 1),
    ]


@pytest.mark.parametrize("fields", [{"n": 0}, {"n": -1}, {"n": 129}, {"n": 2, "prompt": ["x"] * 65}])
def test_too_many_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"^n: ") as caught:
        strands(FakeCourier(), **fields)
    assert (caught.value.status, caught.value.param) == (400, "n")


@pytest.mark.parametrize(
    ("cached", "told"), [((2, 1, 0, 4), 1), ((2, 3, 4, 4), 6), ((0, 0, 0, 0), 0), ((2, None, 4, 4), None)]
)
def test_what_was_cached_is_what_the_first_choice_of_each_prompt_found(
    cached: tuple[int | None, ...], told: int | None
) -> None:
    async def scenario() -> None:
        answers: list[Told] = [
            [event("a") | {"usage": usage(5, 1) | ({} if one is None else {DETAILS: {"cached_tokens": one}})}]
            for one in cached
        ]
        answer = json.loads(await strands(FakeCourier(*answers), n=2, prompt=["x", "y"]).whole())
        assert answer["usage"].get(DETAILS) == (None if told is None else {"cached_tokens": told})

    asyncio.run(scenario())


def test_each_choice_has_prefills_of_its_own() -> None:
    courier = FakeCourier()
    strands(courier, n=2)
    one, other = (made.asked.prefills for made in courier.made)
    assert one is not other
