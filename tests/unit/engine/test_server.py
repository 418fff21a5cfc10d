"""The HTTP side over an engine that says what a test tells it to: shapes, failures, and who gives blocks back."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pytest
from aiohttp import ClientSession, web
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tandem.catalogue.generation import GenerationDefaults
from tandem.engine.driver import Driver
from tandem.engine.intake import Intake
from tandem.engine.request import Request
from tandem.engine.server import InstanceServer
from tandem.engine.update import Update
from tandem.errors import RequestError
from tandem.protocol.identity import CAPABILITIES, Identity
from tandem.protocol.kv import KVTransferParams
from tandem.protocol.logprobs import TokenLogprobs
from tandem.text.tokenizer import Tokenizer

TICKET = KVTransferParams(
    do_remote_prefill=True, remote_engine_id="e", remote_request_id="t1", remote_host="h", remote_port=1
)
KEEP = {"do_remote_decode": True}
DONE = "data: [DONE]"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
T = TypeVar("T")


class FakeDriver:
    """Plays a script; a number in it is a pause in seconds."""

    engine = None
    alive = True

    def __init__(self, *script: Update | float) -> None:
        self.script: Sequence[Update | float] = script
        self.requests: list[Request] = []
        self.released: list[str] = []
        self.declined: list[KVTransferParams] = []
        self.closed = 0
        self.room: tuple[str, float] | None = ("r1", 30.0)

    async def generate(self, request: Request) -> AsyncGenerator[Update, None]:
        self.requests.append(request)
        try:
            for one in self.script:
                if isinstance(one, Update):
                    yield one
                else:
                    await asyncio.sleep(one)
        finally:
            self.closed += 1

    def release(self, name: str) -> bool:
        self.released.append(name)
        return True

    def decline(self, ticket: KVTransferParams) -> None:
        self.declined.append(ticket)

    def reserve(self, tokens: int) -> tuple[str, float] | None:
        return self.room

    def audit(self) -> dict[str, int]:
        return {"leaked": 0}


class Service:
    """One server in the loop of a test."""

    def __init__(self, session: ClientSession, url: str, driver: FakeDriver) -> None:
        self.session, self.url, self.driver = session, url, driver

    async def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        method = "GET" if body is None else "POST"
        async with self.session.request(method, self.url + path, json=body) as answer:
            return answer.status, await answer.json()

    async def complete(self, path: str = "/v1/completions", **fields: Any) -> Any:
        status, answer = await self.ask(path, ({"prompt": [5, 6]} if "chat" not in path else CHAT) | fields)
        assert status == 200, answer
        return answer

    async def stream(self, path: str = "/v1/completions", **fields: Any) -> list[Any]:
        body = ({"prompt": [5, 6]} if "chat" not in path else CHAT) | fields | {"stream": True}
        async with self.session.post(self.url + path, json=body) as answer:
            assert answer.status == 200
            *events, end, rest = (await answer.text()).split("\n\n")
        assert rest == ""
        # What failed ends with its error, so that nobody takes it for whole.
        told = [json.loads(event.removeprefix("data: ")) for event in (*events, *([] if end == DONE else [end]))]
        assert (end == DONE) != ("error" in told[-1])
        return told

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def intake(tiny_model: Path) -> Intake:
    tokenizer = Tokenizer.from_folder(tiny_model)
    return Intake(
        tokenizer=tokenizer, defaults=GenerationDefaults(), names=("m",), role="both", vocab_size=512, max_model_len=64
    )


Test = Callable[[Service], Awaitable[T]]
Serve = Callable[..., Any]


@pytest.fixture
def serve(intake: Intake) -> Serve:
    def run(test: Test[T], *script: Update | float) -> T:
        return asyncio.run(_served(intake, FakeDriver(*script), test))

    return run


async def _served(intake: Intake, driver: FakeDriver, test: Test[T]) -> T:
    who = Identity(
        role="both", engine_id="e", model="m", digest="d", max_model_len=64, version="0",
        capabilities=list(CAPABILITIES), tensor_parallel_size=2,
    )  # fmt: skip
    server = InstanceServer(cast(Driver, driver), intake, who)
    runner = web.AppRunner(server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ClientSession() as session:
            return await test(Service(session, f"http://127.0.0.1:{runner.addresses[0][1]}", driver))
    finally:
        await runner.cleanup()


def lp(token: int) -> tuple[TokenLogprobs, ...]:
    return (TokenLogprobs(token, -0.5, ((token, -0.5),)),)


TWO = (
    Update("a", (70,), choice=1),
    Update("x", (71,), choice=0),
    Update("b", (72,), "stop", choice=1),
    Update("", (73,), choice=0),
    Update("y", (74,), "length", choice=0),
)


def test_choices_are_sorted_and_counted(serve: Serve) -> None:
    completion = Completion.model_validate(serve(lambda s: s.complete(n=2), *TWO))
    told = [(choice.index, choice.text, choice.finish_reason) for choice in completion.choices]
    assert told == [(0, "xy", "length"), (1, "ab", "stop")]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (2, 5)
    chat = ChatCompletion.model_validate(serve(lambda s: s.complete("/v1/chat/completions", n=2), *TWO))
    assert [choice.message.content for choice in chat.choices] == ["xy", "ab"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_did_not_have_to_be_computed_is_told(serve: Serve, *, stream: bool) -> None:
    told = Update("ab", (1, 2), reused=2), Update("c", (3,), "length", reused=2)

    async def usage(service: Service) -> Any:
        if not stream:
            return (await service.complete())["usage"]
        return (await service.stream(stream_options={"include_usage": True}))[-1]["usage"]

    assert serve(usage, *told)["prompt_tokens_details"] == {"cached_tokens": 2}


@pytest.mark.parametrize("pulled", [False, True])
def test_a_stream_whose_keys_and_values_were_pulled_tells_when_they_were_here(serve: Serve, *, pulled: bool) -> None:
    when = time.monotonic() - 3 if pulled else None

    async def timing(service: Service) -> str | None:
        body = {"prompt": [5, 6], "stream": True}
        async with service.session.post(f"{service.url}/v1/completions", json=body) as answer:
            await answer.read()
            return answer.headers.get("Server-Timing")

    told = serve(timing, Update("a", (1,), "length", pulled_at=when))
    assert (told is not None) == pulled
    if told is not None:
        assert 3000 <= float(told.removeprefix("decode;dur=")) < 20_000


def test_streamed_choices_are_told_apart(serve: Serve) -> None:
    *chunks, usage = serve(lambda s: s.stream(n=2, stream_options={"include_usage": True}), *TWO)
    told = [(one["choices"][0]["index"], one["choices"][0]["text"]) for one in chunks]
    assert told == [(1, "a"), (0, "x"), (1, "b"), (0, "y")], "what adds nothing is not sent"
    counts = {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert usage["usage"] == counts | {"prompt_tokens_details": {"cached_tokens": 0}}
    chunks = serve(lambda s: s.stream("/v1/chat/completions", n=2), *TWO)
    deltas = [ChatCompletionChunk.model_validate(one).choices[0] for one in chunks]
    assert [(one.index, one.delta.role) for one in deltas[:2]] == [(0, "assistant"), (1, "assistant")]
    assert [(one.index, one.delta.content) for one in deltas[2:]] == [(1, "a"), (0, "x"), (1, "b"), (0, "y")]


HELD_BACK = (
    Update("", (70,), logprobs=lp(70)),
    Update("ab", (71,), logprobs=lp(71)),
    Update("", (72,), "stop", logprobs=lp(72)),
)


def test_no_logprob_is_lost(serve: Serve) -> None:
    whole = serve(lambda s: s.complete(logprobs=1), *HELD_BACK)["choices"][0]["logprobs"]
    chunks = serve(lambda s: s.stream(logprobs=1), *HELD_BACK)
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [len(piece["tokens"]) for piece in pieces] == [1, 1, 1]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for piece in pieces for one in piece[name]] == whole[name]
    chat = "/v1/chat/completions"
    whole = serve(lambda s: s.complete(chat, logprobs=True), *HELD_BACK)["choices"][0]["logprobs"]
    _, *chunks = serve(lambda s: s.stream(chat, logprobs=True), *HELD_BACK)
    assert [one for chunk in chunks for one in chunk["choices"][0]["logprobs"]["content"]] == whole["content"]
    assert len(whole["content"]) == 3


def test_without_being_asked_nothing_is_told(serve: Serve) -> None:
    (choice,) = serve(lambda s: s.complete(), Update("a", (70,), "stop"))["choices"]
    assert choice == {"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}


def test_token_ids_never_lag_behind(serve: Serve) -> None:
    script = (Update("", (70,)), Update("a", (71, 72)), Update("", (73,), "stop"))
    chunks = [chunk["choices"][0] for chunk in serve(lambda s: s.stream(return_token_ids=True), *script)]
    assert [chunk["token_ids"] for chunk in chunks] == [[70], [71, 72], [73]]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[5, 6], None, None]
    (choice,) = serve(lambda s: s.complete(return_token_ids=True), *script)["choices"]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([70, 71, 72, 73], [5, 6])


def test_a_chat_tells_its_prompt_at_the_top_once(serve: Serve) -> None:
    path = "/v1/chat/completions"
    whole = serve(lambda s: s.complete(path, return_token_ids=True, n=2), *TWO)
    assert [choice["token_ids"] for choice in whole["choices"]] == [[71, 73, 74], [70, 72]]
    first, *rest = serve(lambda s: s.stream(path, return_token_ids=True, n=2), *TWO)
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert not any("prompt_token_ids" in chunk for chunk in rest)
    assert [chunk["choices"][0].get("token_ids") for chunk in rest] == [None, [70], [71], [72], [73], [74]]


def test_a_resumed_answer_goes_on_without_a_new_beginning(serve: Serve) -> None:
    path, resume = "/v1/chat/completions", {"output_token_ids": [80, 81], "sent": 2, "choice": 3}
    script = Update("z", (82,), "stop", choice=3)
    chunk, usage = serve(
        lambda s: s.stream(path, resume=resume, return_token_ids=True, stream_options={"include_usage": True}), script
    )
    assert chunk["choices"][0]["delta"] == {"content": "z"}
    assert (chunk["choices"][0]["index"], chunk["choices"][0]["token_ids"]) == (3, [82])
    assert "prompt_token_ids" in chunk
    assert usage["usage"]["completion_tokens"] == 3, "the client's answer has so many"
    fresh = serve(lambda s: s.stream(path, resume=resume | {"sent": 0}), script)
    assert fresh[0]["choices"][0]["delta"]["role"] == "assistant"


PREFILL = (Update(ticket=TICKET), Update("a", (70,), "length", ticket=msgspec.structs.replace(TICKET, tp_size=2)))


def test_tickets_come_early_in_a_stream_and_once_in_a_whole_answer(serve: Serve) -> None:
    early, last = serve(lambda s: s.stream(kv_transfer_params=KEEP), *PREFILL)
    assert early["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": None}]
    assert early["kv_transfer_params"]["remote_request_id"] == "t1"
    assert (last["choices"][0]["text"], last["kv_transfer_params"]["tp_size"]) == ("a", 2)
    whole = serve(lambda s: s.complete(kv_transfer_params=KEEP), *PREFILL)
    assert whole["kv_transfer_params"]["tp_size"] == 2
    resumed = serve(
        lambda s: s.complete(kv_transfer_params=KEEP, resume={"output_token_ids": [7], "choice": 4}),
        PREFILL[0], Update("a", (70,), "length", choice=4),
    )  # fmt: skip
    assert [choice["index"] for choice in resumed["choices"]] == [4]


def test_a_ticket_that_arrived_is_not_released(serve: Serve) -> None:
    async def test(service: Service) -> None:
        await service.complete(kv_transfer_params=KEEP)
        await service.stream(kv_transfer_params=KEEP)
        await service.until(lambda: service.driver.closed == 2)
        assert service.driver.released == []

    serve(test, *PREFILL)


@pytest.mark.parametrize("stream", [False, True])
def test_a_ticket_nobody_received_is_released(serve: Serve, stream: bool) -> None:
    async def test(service: Service) -> None:
        body = {"prompt": [5], "kv_transfer_params": KEEP, "stream": stream}
        url = f"{service.url}/v1/completions"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), service.session.post(url, json=body) as answer:
                await answer.read()
        await service.until(lambda: service.driver.released == ["t1"])
        assert service.driver.closed == 1

    serve(test, PREFILL[0], 30.0, PREFILL[1])


def test_a_client_that_leaves_while_a_long_answer_is_written(serve: Serve) -> None:
    async def test(service: Service) -> None:
        body = json.dumps({"prompt": [5], "kv_transfer_params": KEEP}).encode()
        host, port = service.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await service.until(lambda: service.driver.closed == 1)
        assert service.driver.released == [], "it is being written"
        writer.transport.abort()
        await service.until(lambda: service.driver.released == ["t1"])

    serve(test, PREFILL[0], Update("a" * 2**25, (70,), "length"))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, "generation_failed"),
        (502, "generation_failed"),
        (504, "deadline_exceeded"),
        (409, "ticket_released"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_before_the_first_byte(serve: Serve, status: int, code: str, stream: bool) -> None:
    failure = Update(reason="error", error="it broke", status=status)
    got, answer = serve(lambda s: s.ask("/v1/completions", {"prompt": [5], "stream": stream}), failure)
    assert (got, answer["error"]["code"], answer["error"]["message"]) == (status, code, "it broke")


def test_failures_later_are_events(serve: Serve) -> None:
    late = Update(reason="error", error="too late", status=504)
    first, error = serve(lambda s: s.stream(), Update("a", (70,)), late)
    assert first["choices"][0]["text"] == "a"
    assert (error["error"]["code"], error["error"]["type"]) == ("deadline_exceeded", "server_error")


def test_a_refused_request_gives_its_ticket_back(serve: Serve) -> None:
    async def test(service: Service) -> None:
        for path, body in (("completions", {"prompt": [5, 6]}), ("chat/completions", CHAT)):
            ticket = msgspec.to_builtins(TICKET)
            status, _ = await service.ask(f"/v1/{path}", body | {"max_tokens": 99, "kv_transfer_params": ticket})
            assert status == 400
            wrong = ticket | {"remote_host": "a b"}
            status, _ = await service.ask(f"/v1/{path}", body | {"max_tokens": 99, "kv_transfer_params": wrong})
            assert status == 400
        assert service.driver.declined == [TICKET, TICKET]
        for nonsense in ({"max_tokens": 0}, {"stream": 1}, {"no_such_field": 1}):
            status, _ = await service.ask("/v1/completions", {"prompt": [5], "kv_transfer_params": ticket} | nonsense)
            assert status == 400
        assert service.driver.declined == [TICKET] * 5
        status, _ = await service.ask(
            "/v1/completions", {"prompt": [5], "kv_transfer_params": ticket | {"tp_size": "2"}}
        )
        assert status == 400
        assert len(service.driver.declined) == 5, "what is no ticket is nobody's"
        assert service.driver.requests == []

    serve(test)


def test_a_client_that_leaves_before_its_prompt_is_read_gives_its_ticket_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, read = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        reading.set()
        read.wait(20)

    for way in ("completion", "chat"):
        monkeypatch.setattr(Intake, way, slow)

    async def test(service: Service) -> None:
        for path, body in (("completions", {"prompt": [5, 6]}), ("chat/completions", CHAT)):
            reading.clear()
            asked = body | {"kv_transfer_params": msgspec.to_builtins(TICKET)}
            asking = asyncio.create_task(service.ask(f"/v1/{path}", asked))
            await service.until(reading.is_set)
            asking.cancel()
            before = len(service.driver.declined)
            await service.until(lambda before=before: len(service.driver.declined) > before)
        read.set()
        assert service.driver.declined == [TICKET, TICKET]
        assert service.driver.requests == []

    serve(test)


def test_reservations(serve: Serve) -> None:
    async def test(service: Service) -> None:
        assert await service.ask("/tandem/reserve", {"tokens": 3}) == (200, {"reservation": "r1", "expires_in": 30.0})
        service.driver.room = None
        async with service.session.post(f"{service.url}/tandem/reserve", json={"tokens": 3}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "no_room")
            assert "Retry-After" in answer.headers
        for wrong in ({}, {"tokens": 0}, {"tokens": 65}, {"tokens": "x"}, {"tokens": True}):
            status, answer = await service.ask("/tandem/reserve", wrong)
            assert (status, answer["error"]["param"]) == (400, "tokens")
        for wrong, param in (({"tokens": 3, "seconds": 9}, "seconds"), ([], None)):
            status, answer = await service.ask("/tandem/reserve", wrong)
            assert (status, answer["error"]["param"]) == (400, param)

    serve(test)


def test_releases(serve: Serve) -> None:
    async def test(service: Service) -> None:
        for body in ({"ticket": "t"}, {"reservation": "r"}):
            assert await service.ask("/tandem/release", body) == (200, {"released": True})
        assert service.driver.released == ["t", "r"]
        for wrong, param in (
            ({"tocket": "t"}, "tocket"),
            ({"ticket": 3}, "ticket"),
            ({"ticket": ""}, "ticket"),
            ({"reservation": ["r"]}, "reservation"),
            ({"ticket": "t", "reservation": "r"}, "ticket"),
            ({}, "ticket"),
        ):
            status, answer = await service.ask("/tandem/release", wrong)
            assert (status, answer["error"]["param"]) == (400, param)
            assert answer["error"]["message"].startswith(f"{param}: ")
        assert len(service.driver.released) == 2

    serve(test)


def test_a_path_that_is_not_there_is_told_all_that_are(serve: Serve) -> None:
    status, answer = serve(lambda s: s.ask("/v1/nope"))
    assert status == 404
    for path in ("/v1/completions", "/v1/models", "/identity", "/metrics", "/tandem/reserve", "/tandem/audit"):
        assert path in answer["error"]["message"]


def test_who_and_how(serve: Serve) -> None:
    who = serve(lambda s: s.ask("/identity"))[1]
    assert (who["capabilities"], who["tensor_parallel_size"]) == (list(CAPABILITIES), 2)
    assert serve(lambda s: s.ask("/tandem/audit")) == (200, {"leaked": 0})
    assert serve(lambda s: s.ask("/health")) == (200, {"status": "ok", "engine_id": who["engine_id"]})


def test_a_request_that_can_never_fit(intake: Intake) -> None:
    class Full(FakeDriver):
        async def generate(self, request: Request) -> AsyncGenerator[Update, None]:
            raise RequestError("too large")
            yield Update()

    status, answer = asyncio.run(_served(intake, Full(), lambda s: s.ask("/v1/completions", {"prompt": [5]})))
    assert (status, answer["error"]["message"]) == (400, "too large")
