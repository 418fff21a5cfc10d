"""What must not get in, and what must not get out: raw requests against a gateway, and answers that tell too much."""

from __future__ import annotations

import asyncio
import json
import zlib
from typing import Any, Final

import pytest
from aiohttp import web
from fake_worker import TICKET, answers, by_leg, whole_with_ticket, words
from gateway_rig import BODY, JSON, Rig, rigged, trial

from tandem.gateway.request.limits import Limits

SENT: Final = json.dumps(BODY).encode()
FRAMED: Final = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(SENT), SENT)

DANGEROUS: Final = (
    "/sleep",
    "/wake_up",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/server_info",
    "/start_profile",
    "/update_weights",
    "/inference/v1/generate",
    "/tokenize",
    "/v1/embeddings",
    "/v1/responses",
    "/tandem/release",
    "/tandem/reserve",
    "/tandem/audit",
    "/identity",
    "/generate",
    "/docs",
)
"""Of vLLM and of our own instances."""


async def raw(rig: Rig, request: bytes, *, closes: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer to these bytes, after which the connection may have to be closed."""
    host, port = rig.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers["content-length"]))
        assert not closes or await reader.read() == b""
        return int(first.split()[1]), headers, body
    finally:
        writer.transport.abort()


def post(path: str = "/v1/completions", version: str = "1.1", more: bytes = b"", rest: bytes = FRAMED) -> bytes:
    return f"POST {path} HTTP/{version}\r\nHost: x\r\n".encode() + more + rest


@trial
async def test_only_the_gateway_s_own_paths_lead_anywhere() -> None:
    asked: list[str] = []

    async def anywhere(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        asked.append(request.path)
        return await by_leg(whole_with_ticket, words, decode=words)(request, body)

    spelled = ("//v1/completions", "/v1%2Fcompletions", "/x/../v1/completions", "/v1/completions/", "/V1/completions")
    async with rigged(anywhere, anywhere) as rig:
        for path in (*DANGEROUS, *spelled, "*", "evil:80"):
            for method in ("POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
                request = post(path).replace(b"POST", method.encode(), 1)
                status, _, told = await raw(rig, request)
                assert status in (400, 404), (method, path, status)
                assert set(json.loads(told)["error"]) == {"message", "type", "param", "code"}
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "GET", "TRACE"):
            assert (await raw(rig, post().replace(b"POST", method.encode(), 1)))[0] in (400, 405)
        assert asked == []
        for path in ("/v1/%63ompletions", "http://elsewhere/v1/completions", "/v1/completions?x=/sleep#y"):
            assert (await raw(rig, post(path)))[0] == 200
        assert set(asked) == {"/v1/completions"}


@trial
async def test_requests_whose_end_is_in_doubt_are_refused() -> None:
    chunked = b"Transfer-Encoding: chunked\r\n"
    kind = b"Content-Type: application/json\r\n"
    end = b"\r\n0\r\n\r\n"
    doubtful = {
        "both lengths": post(more=chunked),
        "two lengths": post(more=b"Content-Length: 3\r\n"),
        "chunked and 1.0": post(version="1.0", more=chunked + kind, rest=end),
        "unknown coding": post(more=b"Transfer-Encoding: xchunked\r\n" + kind, rest=end),
        "signed length": post(more=kind + b"Content-Length: +2\r\n", rest=b"\r\n{}"),
        "blank before the colon": post(more=kind + b"Content-Length : 2\r\n", rest=b"\r\n{}"),
        "bare line ends": b"POST /v1/completions HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}",
        "folded header": post(more=b"X: a\r\n b\r\n"),
        "no host": post().replace(b"Host: x\r\n", b""),
        "two hosts": post(more=b"Host: y\r\n"),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    }
    async with rigged() as rig:
        for why, request in doubtful.items():
            status, _, told = await raw(rig, request, closes=True)
            assert status == 400, why
            assert json.loads(told)["error"]["code"] == "invalid_http", why
        assert rig.prefill.bodies == rig.decode.bodies == []
        for version in ("1.0", "1.1"):
            assert (await raw(rig, post(version=version)))[0] == 200
        assert (await raw(rig, post(more=b"Connection: Upgrade\r\nUpgrade: websocket\r\n")))[0] == 200


@trial
async def test_heads_that_are_too_large_are_refused_by_what_is_too_large() -> None:
    limits = Limits(max_url_bytes=1000, max_header_bytes=1000, max_headers=20)
    async with rigged(limits=limits) as rig:
        for request, status, said in (
            (post("/v1/completions?" + "x" * 2000), 414, "the URL has more than 1000 bytes"),
            (post(more=b"X: " + b"x" * 2000 + b"\r\n"), 431, "a header has more than 1000 bytes"),
            (post(more=b"X: x\r\n" * 30), 431, "there are too many headers"),
        ):
            found, _, told = await raw(rig, request)
            assert found == status
            assert json.loads(told)["error"]["message"].startswith(said)
        assert (await raw(rig, post(more=b"X: " + b"x" * 900 + b"\r\n")))[0] == 200


@trial
async def test_what_a_page_of_another_site_could_send_is_refused() -> None:
    """A browser asks first before it sends JSON that is called so; `curl -d` calls it a form."""
    async with rigged() as rig:
        url = rig.url + "/v1/completions"
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"):
            called = {"Content-Type": kind}
            async with rig.http.post(url, data=SENT, headers=called | {"Origin": "https://evil.example"}) as response:
                assert response.status == 415
                assert (await response.json())["error"]["message"].startswith(f"Content-Type: is {kind!r}; send JSON")
            async with rig.http.post(url, data=SENT, headers=called) as response:
                assert response.status == 200
        for kind in ("application/json; charset=utf-8", "Application/JSON"):
            async with rig.http.post(url, data=SENT, headers={"Content-Type": kind, "Origin": "null"}) as response:
                assert response.status == 200


@trial
async def test_packed_bodies_count_as_what_they_are_unpacked() -> None:
    async with rigged(limits=Limits(max_body_bytes=100_000)) as rig:
        packed = JSON | {"Content-Encoding": "deflate"}
        bomb = zlib.compress(b'{"prompt": "' + b"x" * 10_000_000 + b'"}')
        assert len(bomb) < 100_000
        for data, status in ((bomb, 413), (zlib.compress(SENT), 200), (SENT, 400)):
            async with rig.http.post(rig.url + "/v1/completions", data=data, headers=packed) as response:
                assert response.status == status


@trial
async def test_counts_are_limits_of_their_own() -> None:
    async with rigged(limits=Limits(max_n=2, max_prompts=3)) as rig:
        for wrong, said in (({"n": 3}, "n: 3 answers"), ({"prompt": ["a"] * 4}, "prompt: 4 prompts are more than 3")):
            async with rig.post(BODY | wrong) as response:
                assert response.status == 400
                assert (await response.json())["error"]["message"].startswith(said)
        async with rig.post(BODY | {"prompt": ["a"] * 3}) as response:
            assert response.status == 200


@trial
async def test_instances_hear_only_some_of_a_client_s_headers() -> None:
    told = {
        "Authorization": "Bearer k",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "tracestate": "a=1",
        "X-Request-Id": "mine",
    }
    untold = {
        "X-data-parallel-rank": "1",
        "X-Vllm-Priority": "0",
        "X-Session-ID": "s",
        "X-Forwarded-For": "10.0.0.1",
        "Cookie": "a=b",
        "Forwarded": "for=10.0.0.1",
        "X-Prefiller-Host-Port": "evil:80",
    }
    async with rigged() as rig:
        async with rig.post(BODY, headers=told | untold) as response:
            assert response.status == 200
        for worker in (rig.prefill, rig.decode):
            (heard,) = worker.headers
            assert {name: heard.get(name) for name in told} == told
            assert not any(name in heard for name in untold)


@pytest.mark.parametrize("who", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_instance_s_refusal_tells_no_address(who: str, stream: bool) -> None:
    @trial
    async def scenario() -> None:
        async with rigged() as rig:
            worker = rig.prefill if who == "prefill" else rig.decode
            said = f"{worker.url}/v1/completions: cannot pull from {TICKET['remote_host']}:{TICKET['remote_port']}"
            error = {"message": said, "type": "invalid_request_error", "param": "prompt", "code": 400}
            worker.script = refusing({"error": error})
            async with rig.post(BODY | {"stream": stream}) as response:
                assert response.status == 400
                assert (await response.json())["error"]["message"] == "(address) cannot pull from (address)"
                assert set(response.headers) & {"Location", "Via", "X-Served-By", "Set-Cookie"} == set()
                assert "evil" not in str(response.headers)

    scenario()


def refusing(payload: Any) -> Any:
    async def script(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        headers = {"Server": "evil/1", "Location": "http://evil:1/", "Via": "evil", "Set-Cookie": "a=evil"}
        return web.json_response(payload, status=400, headers=headers | {"X-Served-By": "evil"})

    return script


@trial
async def test_a_redirect_is_a_failure_and_leads_nowhere() -> None:
    async def elsewhere(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("http://evil:1/v1/completions")

    async with rigged(elsewhere, elsewhere) as rig, rig.post(BODY, allow_redirects=False) as response:
        assert response.status == 502
        assert "evil" not in await response.text() + str(response.headers)


@trial
async def test_answers_hold_no_ticket_of_any_kind() -> None:
    choice = {"index": 0, "text": "x", "finish_reason": "stop"}
    tickets = {"kv_transfer_params": TICKET, "ec_transfer_params": {"remote_host": "10.0.0.9"}}
    said = {"id": "x", "choices": [choice], "n": 1.5}
    async with rigged(decode=answers(200, said | tickets)) as rig, rig.post(BODY) as response:
        assert await response.json() == said
