"""vLLM 0.5.0's own API at the gateway, in front of fake workers: what they are asked, what the client gets."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import Any

import pytest
from fake_worker import WORDS, cut_short, never, without_done, words_then_never
from gateway_rig import SOON_S, Rig, rigged, trial, until

TEXT = "hi" + "".join(WORDS)


def objects(raw: bytes) -> list[dict[str, Any]]:
    *parts, rest = raw.split(b"\0")
    assert rest == b""
    return [json.loads(part) for part in parts]


def generate(rig: Rig, **fields: Any) -> Any:
    return rig.post({"prompt": "hi", **fields}, "/generate")


async def ask(rig: Rig) -> bytes:
    async with generate(rig, stream=True) as response:
        return bytes(await response.read())


async def counted(rig: Rig, outcome: str) -> bool:
    return await rig.metric(f'tandem_gateway_requests_total{{endpoint="/generate",outcome="{outcome}"}}') == 1


@trial
async def test_a_whole_answer_is_behind_its_prompt() -> None:
    async with rigged(api="vllm") as rig:
        async with generate(rig, max_tokens=8, stop=["x"], best_of=1, use_beam_search=False) as response:
            assert (response.status, await response.json()) == (200, {"text": [TEXT]})
            assert response.headers["X-Tandem-Decode"] == "decode-0"
        asked = rig.decode.bodies[0]
        assert asked.pop("kv_transfer_params")
        assert asked == {
            "prompt": "hi", "stream": False, "n": 1, "max_tokens": 8, "min_tokens": 0, "temperature": 1.0,
            "top_p": 1.0, "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "repetition_penalty": 1.0, "stop": ["x"], "ignore_eos": False,
        }  # fmt: skip


@trial
async def test_every_object_of_a_stream_holds_all_text_so_far() -> None:
    async with rigged(api="vllm") as rig:
        told = objects(await ask(rig))
        assert told == [{"text": ["hi" + "".join(WORDS[:count])]} for count in range(1, len(WORDS) + 1)]
        assert rig.decode.bodies[0]["max_tokens"] == 16
        assert await counted(rig, "ok")


@pytest.mark.parametrize("script", [cut_short, without_done])
def test_a_broken_stream_ends_with_an_error(script: Any) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(decode=script, api="vllm") as rig:
            told = objects(await ask(rig))
            assert told[0] == {"text": ["hiHel"]}
            assert "decode-0" in told[-1]["error"]["message"]
            assert await counted(rig, "broken")

    scenario()


@trial
async def test_what_is_not_supported_is_refused_by_name() -> None:
    wrong: dict[str, Any] = {
        "use_beam_search": True, "best_of": 3, "length_penalty": 0.5, "early_stopping": True, "logprobs": 1,
        "prompt_logprobs": 0, "include_stop_str_in_output": True, "detokenize": False, "skip_special_tokens": False,
        "spaces_between_special_tokens": False, "logits_processors": ["x"], "truncate_prompt_tokens": 5,
        "messages": [], "max_tokens": 0, "temperature": -1, "prompt": 7, "top_k": 0, "stop": "",
    }  # fmt: skip
    async with rigged(api="vllm") as rig:
        for name, value in wrong.items():
            async with generate(rig, **{name: value}) as response:
                error = (await response.json())["error"]
                assert (response.status, error["param"]) == (400, name), error
        async with generate(rig, stop=["a", ""]) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, "stop")
        async with rig.post({"stream": True}, "/generate") as response:
            assert (response.status, (await response.json())["error"]["message"]) == (
                400, "prompt: is missing; the request needs it"
            )  # fmt: skip
        assert rig.prefill.bodies == []


@trial
async def test_there_are_no_other_endpoints() -> None:
    async with rigged(api="vllm") as rig:
        async with rig.post({"prompt": "hi"}) as response:
            message = (await response.json())["error"]["message"]
            assert response.status == 404
            assert message == "/v1/completions: no such endpoint; there are /generate, /health, /metrics"
        async with rig.http.get(rig.url + "/health") as response:
            assert response.status == 200


@pytest.mark.parametrize("during", ["prefill", "decode"])
def test_a_client_that_leaves_aborts_both_sides(during: str, caplog: pytest.LogCaptureFixture) -> None:
    scripts = {"prefill": never} if during == "prefill" else {"decode": words_then_never}

    @trial
    async def scenario() -> None:
        async with rigged(api="vllm", **scripts) as rig:
            asking = asyncio.create_task(ask(rig))
            worker = rig.prefill if during == "prefill" else rig.decode
            await worker.arrived.wait()
            await asyncio.sleep(0.05)
            asking.cancel()
            await asyncio.wait_for(worker.aborted.wait(), SOON_S)
            await until(partial(counted, rig, "aborted"))

    with caplog.at_level(logging.INFO, "tandem.gateway"):
        scenario()
    assert any("/generate" in line and line.endswith(" 499: its client has left") for line in caplog.messages)
