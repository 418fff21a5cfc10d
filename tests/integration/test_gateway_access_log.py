"""The access log of a gateway in front of fake workers: a line for each request, and no secrets."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_model import failing_after, model, resets
from fake_worker import Script, answers, cut_short, never, words
from gateway_rig import BODY, Rig, rigged, trial, until

from tandem.gateway.delivery import tries
from tandem.gateway.door.keys import Key, Keys, add_key, digest_of, new_key
from tandem.gateway.fleet.fleet import ChangeConfig
from tandem.gateway.observability.visibility import Visibility

STREAMED = BODY | {"stream": True}
SECRET = "a-secret-that-no-log-may-hold"


@pytest.fixture(autouse=True)
def without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "PAUSE_S", 0.01)


def showing(path: Path, **options: Any) -> dict[str, Visibility]:
    return {"visibility": Visibility(access_log=str(path), access_log_format="json", **options)}


async def lines(path: Path, count: int) -> list[str]:
    """So many lines, as soon as they are there."""

    async def there() -> bool:
        return read(path).count("\n") >= count

    await until(there)
    assert read(path).count("\n") == count
    return read(path).splitlines()


def read(path: Path) -> str:
    return path.read_text()


async def line_of(path: Path) -> dict[str, Any]:
    [line] = await lines(path, 1)
    told: dict[str, Any] = json.loads(line)
    return told


async def post(rig: Rig, body: Any, path: str = "/v1/completions", **options: Any) -> int:
    async with rig.post(body, path, **options) as response:
        await response.read()
        return int(response.status)


def test_a_line_says_how_a_request_went(tmp_path: Path) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(prefill=model, decode=model, **showing(tmp_path / "log")) as rig:
            await post(rig, STREAMED, headers={"X-Request-Id": "my.id-1"})
            line = await line_of(tmp_path / "log")
        assert line.pop("time").endswith("+00:00")
        for name in ("total_ms", "ttft_ms", "prefill_ms", "transfer_first_decode_ms"):
            assert 0 < line.pop(name) < 5000, name
        assert line.pop("longest_gap_ms", 0) >= 0
        assert line.pop("answer_bytes") > 100
        assert line.pop("request_bytes") > 20
        assert line == {
            "id": "my.id-1",
            "method": "POST",
            "path": "/v1/completions",
            "status": 200,
            "outcome": "ok",
            "route": "apart",
            "prefill": "prefill-0",
            "decode": "decode-0",
            "events": 7,
            "tries": 1,
            "continuations": 0,
        }

    scenario()


def test_a_whole_answer_has_its_bytes_and_a_line_of_text_a_bare_time(tmp_path: Path) -> None:
    @trial
    async def scenario() -> None:
        options = Visibility(access_log=str(tmp_path / "log"))
        async with rigged(visibility=options) as rig:
            async with rig.post(BODY) as response:
                size = len(await response.read())
            [line] = await lines(tmp_path / "log", 1)
        assert f" answer_bytes={size} " in line
        assert re.match(r"time=20[\d-]+T[\d:.]+\+00:00 id=", line)

    scenario()


def test_what_generates_nothing_has_its_line_too(tmp_path: Path) -> None:
    @trial
    async def scenario() -> None:
        path, key = tmp_path / "log", add_key(tmp_path / "keys", "alice", None, None)
        keys = Keys.from_file(tmp_path / "keys")
        async with rigged(keys=keys, change=ChangeConfig(admin_keys=keys), **showing(path)) as rig:
            own = {"Authorization": f"Bearer {key}"}
            async with rig.http.get(rig.url + "/v1/models") as refused:
                assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
                first_id = refused.headers["X-Request-Id"]
            async with rig.http.get(rig.url + "/v1/models", headers=own | {"X-Request-Id": "mine"}) as listed:
                assert (listed.status, listed.headers["X-Request-Id"]) == (200, "mine")
            async with rig.http.get(rig.url + "/admin/topology", headers=own) as shown:
                assert shown.status == 200
            async with rig.http.post(rig.url + "/admin/workers/decode-0/drain", headers=own) as drained:
                assert drained.status == 200
            told = [json.loads(line) for line in await lines(path, 3)]
        found = [tuple(one.get(name) for name in ("id", "key", "method", "status", "outcome")) for one in told]
        assert found[:2] == [(first_id, None, "GET", 401, None), ("mine", "alice", "GET", 200, None)]
        assert found[2][1:] == ("alice", "POST", 200, None)

    scenario()


def test_a_line_says_what_went_wrong(tmp_path: Path) -> None:
    @trial
    async def scenario() -> None:
        path = tmp_path / "log"
        async with rigged(model, (model, model), ("resume",), policy="round_robin", **showing(path)) as rig:
            rig.decode.script = failing_after(3, resets)
            await post(rig, STREAMED)
            line = await line_of(path)
            told = ("outcome", "tries", "continuations", "cause", "decode")
            assert [line[name] for name in told] == ["ok", 2, 1, "cut", "decode-0"]

    scenario()


CASES: dict[str, tuple[Script, dict[str, Any], int, str]] = {
    "refused by an instance": (answers(400, {"error": {"message": SECRET}}), BODY, 400, "refused"),
    "failed": (answers(500, {"error": {"message": SECRET}}), BODY, 502, "failed"),
    "broken": (cut_short, STREAMED, 200, "broken"),
    "refused here": (words, {"prompt": SECRET, "model": 1, "n": -1}, 400, "refused"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_end_has_its_line(case: str, tmp_path: Path) -> None:
    decode, body, status, outcome = CASES[case]

    @trial
    async def scenario() -> None:
        both = {"prefill": decode, "decode": decode} if status == 502 else {"decode": decode}
        async with rigged(**both, **showing(tmp_path / "log")) as rig:
            await post(rig, body)
            line = await line_of(tmp_path / "log")
            assert (line["status"], line["outcome"]) == (status, outcome)

    scenario()


def test_a_client_that_leaves_has_a_line(tmp_path: Path) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(decode=never, **showing(tmp_path / "log")) as rig:
            asking = asyncio.create_task(post(rig, BODY))
            await rig.decode.arrived.wait()
            asking.cancel()
            line = await line_of(tmp_path / "log")
            assert (line["status"], line["outcome"]) == (499, "aborted")
            assert "answer_bytes" not in line

    scenario()


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_that_a_client_wrote_and_no_address_is_logged(form: Any, tmp_path: Path) -> None:
    key = new_key()
    keys = Keys((Key(name="alice", sha256=digest_of(key)),))
    path = tmp_path / "log"
    mine = {"Authorization": f"Bearer {key}", "User-Agent": SECRET, "traceparent": SECRET}
    mine["X-Request-Id"] = f"{SECRET} 1"

    async def speaks(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"id": SECRET, "choices": [{"text": SECRET}], "usage": {"prompt_tokens": 1}})

    @trial
    async def scenario() -> None:
        shown = Visibility(access_log=str(path), access_log_format=form)
        async with rigged(decode=speaks, keys=keys, visibility=shown) as rig:
            asked = {"prompt": SECRET, "user": SECRET, "cache_salt": SECRET, "model": SECRET}
            assert await post(rig, asked, headers=mine) == 200
            assert await post(rig, asked, f"/v1/completions?prompt={SECRET}", headers=mine) == 200
            assert await post(rig, asked, f"/v1/{SECRET}", headers=mine) == 404
            assert await post(rig, asked, headers={"Authorization": f"Bearer {SECRET}"}) == 401
            async with rig.http.get(f"{rig.url}/v1/models", headers=mine) as response:
                await response.read()
            for quiet in ("/health", "/metrics"):
                async with rig.http.get(rig.url + quiet) as response:
                    await response.read()
            log = "\n".join(await lines(path, 5))
            for hidden in (SECRET, key, digest_of(key), "127.0.0.1", rig.prefill.url.rpartition(":")[2]):
                assert hidden not in log.replace("_ms=", " ")
            assert log.count("alice") == 3

    scenario()


def test_addresses_of_clients_are_told_where_they_are_asked_for(tmp_path: Path) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(**showing(tmp_path / "log", access_log_clients=True)) as rig:
            await post(rig, BODY)
            line = await line_of(tmp_path / "log")
            assert line["client"] == "127.0.0.1"

    scenario()
