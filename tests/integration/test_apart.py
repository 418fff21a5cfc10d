"""Real processes: one prefill, one decode and the gateway answer as one instance does, and as a plain forward pass."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from tandem.deploy.demonstration import Question, demonstrate
from tandem.deploy.service import local_topology, running
from tandem.errors import ProcessError
from tandem.model.context import CausalContext
from tandem.model.folder import load
from tandem.text.detokenizer import Detokenizer, Start
from tandem.text.tokenizer import Tokenizer
from tandem.topology.topology import Role, Topology

JSON = {"Content-Type": "application/json"}
PER_BLOCK = 3 * 2 * 16 * 2 * 16 * 4
"""KV bytes per block of the tiny model: layers, planes, tokens, kv heads, head dimension, fp32."""


class Service:
    """A running topology, with what tests ask of it."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def url(self, role: Role) -> str:
        return self.topology.of(role)[0].url

    def post(self, role: Role, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(self.url(role) + path, json.dumps(body).encode(), JSON)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def metric(self, role: Role, name: str) -> float:
        with urllib.request.urlopen(f"{self.url(role)}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"tandem_{name} "))

    def wait_for(self, role: Role, name: str, value: float) -> None:
        deadline = time.monotonic() + 10
        while self.metric(role, name) != value:
            assert time.monotonic() < deadline, f"{name} of {role} is {self.metric(role, name)}, not {value}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def apart(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    topology = local_topology(tiny_model, prefill=1, decode=1, port=0)
    with running(topology, tmp_path_factory.mktemp("apart"), timeout=120):
        yield Service(topology)


@pytest.fixture(scope="module")
def together(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    topology = local_topology(tiny_model, prefill=0, decode=1, port=0)
    with running(topology, tmp_path_factory.mktemp("together"), timeout=120):
        yield Service(topology)


def greedy(prompt: list[int], count: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}


def plain_greedy(folder: Path, prompt: list[int], count: int) -> list[int]:
    decoder, tokens = load(folder, torch.device("cpu")), list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = decoder(torch.tensor([tokens]), CausalContext(1, len(tokens), torch.device("cpu")))
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [1, 9, 16, 17, 48, 130])
def test_served_apart_equals_served_together(tiny_model: Path, apart: Service, together: Service, length: int) -> None:
    prompt = [7 + (length * 31 + place * 17) % 500 for place in range(length)]
    sent, received = (
        apart.metric(Role.PREFILL, "kv_bytes_sent_total"),
        apart.metric(Role.DECODE, "kv_bytes_received_total"),
    )
    answers = [one.post(Role.GATEWAY, "/v1/completions", greedy(prompt, 24)) for one in (apart, together)]
    texts = [answer["choices"][0]["text"] for _, answer in answers]
    assert texts == [Tokenizer.from_folder(tiny_model).decode(plain_greedy(tiny_model, prompt, 24))] * 2
    usage = {"prompt_tokens": length, "completion_tokens": 24, "total_tokens": length + 24}
    told = [answer["usage"] for _, answer in answers]
    assert [one | usage for one in told] == told
    assert apart.metric(Role.DECODE, "prompt_tokens_computed_total") == 0
    apart.wait_for(Role.PREFILL, "kv_bytes_sent_total", sent + -(-length // 16) * PER_BLOCK)
    assert apart.metric(Role.DECODE, "kv_bytes_received_total") == received + -(-length // 16) * PER_BLOCK


def test_seeded_text_chat_and_stops_are_the_same_apart(apart: Service, together: Service) -> None:
    chat = {"messages": [{"role": "user", "content": "What does textwrap do?"}], "max_tokens": 30, "seed": 5}
    completion = {"prompt": "def main(", "max_tokens": 30, "seed": 9, "temperature": 0.9, "top_p": 0.9, "top_k": 50}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", completion)):
        answers = [one.post(Role.GATEWAY, path, body) for one in (apart, together)]
        assert [status for status, _ in answers] == [200, 200]
        assert answers[0][1]["choices"] == answers[1][1]["choices"]
    text = answers[0][1]["choices"][0]["text"]
    stopped = [one.post(Role.GATEWAY, "/v1/completions", completion | {"stop": text[4:7]}) for one in (apart, together)]
    for _, answer in stopped:
        choice = answer["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.find(text[4:7])], "stop")


def test_penalties_and_logprobs_are_the_same_apart(apart: Service, together: Service) -> None:
    body = {"prompt": "def main(", "max_tokens": 20, "seed": 3, "temperature": 0.8, "logprobs": 4, "ignore_eos": True}
    penalties = {"repetition_penalty": 0.3, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    texts = []
    for asked in (body, body | penalties):
        one, other = (s.post(Role.GATEWAY, "/v1/completions", asked)[1]["choices"][0] for s in (apart, together))
        assert one["text"] == other["text"]
        texts.append(one["text"])
        told, expected = one["logprobs"], other["logprobs"]
        assert len(told["tokens"]) == 20
        assert [told[name] for name in ("tokens", "text_offset")] == [expected[n] for n in ("tokens", "text_offset")]
        assert told["token_logprobs"] == pytest.approx(expected["token_logprobs"], abs=1e-3)
    assert texts[0] != texts[1]


def test_choices_share_a_ticket_and_are_the_same_apart(apart: Service, together: Service) -> None:
    body = {"prompt": [40, 41, 42], "max_tokens": 12, "seed": 8, "temperature": 1.0, "n": 3, "return_token_ids": True}
    whole = together.post(Role.GATEWAY, "/v1/completions", body)[1]
    keep = body | {"max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
    first = apart.post(Role.PREFILL, "/v1/completions", keep)[1]
    assert [c["token_ids"] for c in first["choices"]] == [c["token_ids"][:1] for c in whole["choices"]]
    asked = body | {"kv_transfer_params": first["kv_transfer_params"]}
    rest = apart.post(Role.DECODE, "/v1/completions", asked)[1]
    assert rest["choices"] == whole["choices"]
    assert rest["usage"] == whole["usage"]
    assert len({choice["text"] for choice in whole["choices"]}) == 3


def test_an_answer_goes_on_elsewhere(tiny_model: Path, apart: Service, together: Service) -> None:
    body = {"prompt": "import ", "max_tokens": 24, "seed": 6, "temperature": 0.9, "top_p": 0.95, "ignore_eos": True}
    body |= {"repetition_penalty": 1.2, "frequency_penalty": 0.2, "return_token_ids": True}
    whole = together.post(Role.GATEWAY, "/v1/completions", body)[1]
    tokens, text = whole["choices"][0]["token_ids"], whole["choices"][0]["text"]
    for done in (1, 7, 23):
        reader = Detokenizer(Tokenizer.from_folder(tiny_model), Start.CONTINUES)
        sent = sum(len(reader.push(token)) for token in tokens[:done])
        resume = {"output_token_ids": tokens[:done], "sent": sent}
        rest = apart.post(Role.DECODE, "/v1/completions", body | {"resume": resume})[1]
        assert rest["choices"][0]["token_ids"] == tokens[done:]
        assert rest["choices"][0]["text"] == text[sent:]
        assert rest["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
        keep = body | {"resume": resume, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
        ticket = apart.post(Role.PREFILL, "/v1/completions", keep)[1]["kv_transfer_params"]
        asked = body | {"resume": resume, "kv_transfer_params": ticket}
        assert apart.post(Role.DECODE, "/v1/completions", asked)[1]["choices"] == rest["choices"]


def test_min_tokens_forbids_an_early_end_apart_too(tiny_model: Path, apart: Service, together: Service) -> None:
    """The prefill's token is an end token, so it must know the minimum as well."""
    prompt = [9, 8, 7]
    ends = plain_greedy(tiny_model, prompt, 1)
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "stop_token_ids": ends}
    counts = []
    for minimum in (0, 1, 6):
        asked = body | {"min_tokens": minimum}
        one, other = (service.post(Role.GATEWAY, "/v1/completions", asked)[1] for service in (apart, together))
        assert one["choices"] == other["choices"]
        assert one["usage"] == other["usage"]
        counts.append(one["usage"]["completion_tokens"])
    assert counts[0] == 1
    assert counts[1] >= 2
    assert counts[2] >= 7


def test_what_the_prefill_instance_found_is_cached_and_not_what_was_pulled(apart: Service) -> None:
    body = greedy([3 + place * 11 % 490 for place in range(40)], 2)
    for found in (0, 32):
        _, answer = apart.post(Role.GATEWAY, "/v1/completions", body)
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": found}
    ticket = apart.post(Role.PREFILL, "/v1/completions", body | {"kv_transfer_params": {"do_remote_decode": True}})[1]
    asked = body | {"kv_transfer_params": ticket["kv_transfer_params"]}
    _, answer = apart.post(Role.DECODE, "/v1/completions", asked)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}, "any router's client is told so"


def test_one_token_answers(apart: Service, together: Service) -> None:
    for body in (greedy([30, 31], 1), greedy([30, 31], 1) | {"stream": False}):
        one, other = (service.post(Role.GATEWAY, "/v1/completions", body)[1] for service in (apart, together))
        assert one["choices"] == other["choices"]
        assert one["usage"]["completion_tokens"] == 1


def test_streams_carry_the_same_text_and_one_usage(apart: Service) -> None:
    body = greedy([50, 60, 70], 16)
    whole = apart.post(Role.GATEWAY, "/v1/completions", body)[1]

    async def stream() -> list[str]:
        async with aiohttp.ClientSession() as session:
            asked = body | {"stream": True, "stream_options": {"include_usage": True}}
            async with session.post(apart.url(Role.GATEWAY) + "/v1/completions", json=asked) as answer:
                assert answer.headers["X-Tandem-Prefill"] == "prefill-0"
                assert answer.headers["X-Tandem-Decode"] == "decode-0"
                return (await answer.text()).split("\n\n")

    *events, done, rest = asyncio.run(stream())
    assert (done, rest) == ("data: [DONE]", "")
    pieces = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(c["text"] for p in pieces for c in p["choices"]) == whole["choices"][0]["text"]
    assert [p["usage"] for p in pieces if "usage" in p] == [whole["usage"]]
    assert len({p["id"] for p in pieces}) == 1


BAD = [
    ({"prompt": "x", "max_tokns": 3}, 400, "max_tokns: unknown field"),
    ({"max_tokens": 3}, 400, "prompt: is missing"),
    ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens: expected `int` >= 1"),
    ({"prompt": "x", "temperature": -1}, 400, "temperature: expected `float` >= 0"),
    ({"prompt": "x", "n": 0}, 400, "n: "),
    ({"prompt": []}, 400, "prompt: is empty"),
    ({"prompt": [1, 99999]}, 400, "prompt: token id 99999 is outside 0..511"),
    ({"prompt": [7] * 600}, 400, "prompt: 600 tokens leave no room"),
    ({"prompt": "x", "stop_token_ids": [99999]}, 400, "stop_token_ids: token id 99999 is outside"),
    ({"prompt": "x", "stop_token_ids": [-1]}, 400, "stop_token_ids: token id -1 is outside"),
    ({"prompt": "x", "stream_options": {}}, 400, "stream_options: needs stream"),
    ({"prompt": "x", "logprobs": 21}, 400, "logprobs: expected `int` <= 20"),
    ({"prompt": [7] * 100, "max_tokens": 500}, 400, "together over this model's 512"),
    ({"prompt": "x", "min_tokens": 30, "max_tokens": 5}, 400, "min_tokens: 30 is over max_tokens 5"),
    ({"prompt": "x", "model": "gpt-9"}, 404, "model: gpt-9 is not served here"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_requests_get_one_clear_line(
    apart: Service, together: Service, body: dict[str, Any], status: int, message: str
) -> None:
    for service in (apart, together):
        got, answer = service.post(Role.GATEWAY, "/v1/completions", body)
        assert got == status
        assert message in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]


RAW = [
    b"{",
    b"[]",
    b'"x"',
    b"",
    b'{"prompt": "\xff\xfe"}',
    b'{"\xff": 1, "prompt": "x"}',
    b'{"prompt": "x", "n": "\\ud800"}',
    b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}",
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "x", "zzz": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]


@pytest.mark.parametrize("body", RAW, ids=range(len(RAW)))
@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}], ids=["plain", "gzip"])
def test_bodies_that_are_no_json_are_refused_everywhere(apart: Service, body: bytes, headers: dict[str, str]) -> None:
    for role in (Role.GATEWAY, Role.PREFILL, Role.DECODE):
        request = urllib.request.Request(f"{apart.url(role)}/v1/completions", body or b" ", headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        with caught.value as error:
            assert error.code == 400
            assert "\n" not in json.load(error)["error"]["message"]


@pytest.mark.full
def test_more_requests_than_the_decode_side_admits_wait_and_finish(tiny_model: Path, tmp_path: Path) -> None:
    """Their leases are far shorter than the wait, so they must be kept."""
    topology = local_topology(tiny_model, prefill=1, decode=1, port=0)
    arguments = {"max-num-seqs": "2", "kv-lease-seconds": "1"}
    slow = [
        one if one.role is Role.GATEWAY else one.model_copy(update={"arguments": arguments})
        for one in topology.instances
    ]
    topology = topology.model_copy(update={"instances": tuple(slow)})

    async def ask(session: aiohttp.ClientSession, url: str, seed: int) -> int:
        async with session.post(url, json=greedy([20 + seed, 30, 40], 450)) as answer:
            return (await answer.json())["usage"]["completion_tokens"] if answer.status == 200 else -answer.status

    async def ask_all(url: str) -> list[int]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(ask(session, url, seed) for seed in range(16)))

    with running(topology, tmp_path, timeout=120):
        answers = asyncio.run(ask_all(topology.of(Role.GATEWAY)[0].url + "/v1/completions"))
        assert answers == [450] * 16
        assert Service(topology).metric(Role.PREFILL, "kv_leases_expired_total") == 0


def test_tickets_are_checked_by_the_prefill_side(apart: Service) -> None:
    prompt = [11, 12, 13]
    keep = greedy(prompt, 1) | {"kv_transfer_params": {"do_remote_decode": True}}
    ticket = apart.post(Role.PREFILL, "/v1/completions", keep)[1]["kv_transfer_params"]
    ask = greedy(prompt, 8)
    for change, reason in [
        ({"remote_request_id": "0" * 32}, "unknown here"),
        ({"remote_engine_id": "other"}, "restarted since"),
        ({"remote_engine_id": "other", "remote_port": 9}, "not reachable"),
    ]:
        status, answer = apart.post(Role.DECODE, "/v1/completions", ask | {"kv_transfer_params": ticket | change})
        assert status == 502
        assert reason in answer["error"]["message"]
    status, _ = apart.post(Role.DECODE, "/v1/completions", ask | {"kv_transfer_params": ticket})
    assert status == 200
    status, answer = apart.post(Role.DECODE, "/v1/completions", ask | {"kv_transfer_params": ticket})
    assert status == 502
    assert "used up" in answer["error"]["message"]


def test_a_streamed_prefill_carries_its_ticket_on_the_last_chunk(apart: Service) -> None:
    asked = greedy([41, 42], 1) | {"kv_transfer_params": {"do_remote_decode": True}, "stream": True}
    request = urllib.request.Request(f"{apart.url(Role.PREFILL)}/v1/completions", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        *_, last, done, _ = answer.read().decode().split("\n\n")
    assert done == "data: [DONE]"
    ticket = json.loads(last.removeprefix("data: "))["kv_transfer_params"]
    assert ticket["remote_num_tokens"] == 2
    released = apart.post(Role.PREFILL, "/tandem/release", {"ticket": ticket["remote_request_id"]})
    assert released == (200, {"released": True})


def test_the_demonstration_tells_what_happened_where(apart: Service, together: Service) -> None:
    for question in (
        Question(text="def main(", is_chat=False, max_tokens=9),
        Question(text="What is textwrap?", is_chat=True, max_tokens=9),
    ):
        reports = [asyncio.run(demonstrate(one.topology, question, lambda _: None)) for one in (apart, together)]
        assert [(r.prefill, r.decode) for r in reports] == [("prefill-0", "decode-0"), ("decode-0", "decode-0")]
        tokens = reports[0].prompt_tokens
        assert [(r.kv_bytes, r.decode_prompt_tokens) for r in reports] == [
            (-(-tokens // 16) * PER_BLOCK, 0),
            (0, tokens),
        ]


def test_a_client_that_leaves_frees_both_sides(apart: Service) -> None:
    async def leave() -> None:
        async with aiohttp.ClientSession() as session:
            asked = greedy([21, 22, 23], 400) | {"stream": True}
            async with session.post(apart.url(Role.GATEWAY) + "/v1/completions", json=asked) as answer:
                await answer.content.readline()

    aborted = 'requests_ended_total{how="aborted"}'
    before = apart.metric(Role.DECODE, aborted)
    asyncio.run(leave())
    apart.wait_for(Role.DECODE, aborted, before + 1)
    for role in (Role.PREFILL, Role.DECODE):
        apart.wait_for(role, "kv_blocks_free", apart.metric(role, "kv_blocks_total"))
    assert apart.metric(Role.DECODE, "requests_running") == 0


def test_an_unused_ticket_can_be_released(apart: Service) -> None:
    keep = greedy([31, 32], 1) | {"kv_transfer_params": {"do_remote_decode": True}}
    ticket = apart.post(Role.PREFILL, "/v1/completions", keep)[1]["kv_transfer_params"]
    assert apart.metric(Role.PREFILL, "kv_leases") == 1
    for released in (True, False):
        answer = apart.post(Role.PREFILL, "/tandem/release", {"ticket": ticket["remote_request_id"]})
        assert answer == (200, {"released": released})
    assert apart.metric(Role.PREFILL, "kv_blocks_free") == apart.metric(Role.PREFILL, "kv_blocks_total")


@pytest.mark.full
@pytest.mark.parametrize("victim", ["decode-0", "prefill-0", "gateway"])
def test_a_killed_process_is_named_and_nothing_stays_behind(victim: str, tiny_model: Path, tmp_path: Path) -> None:
    topology = local_topology(tiny_model, prefill=1, decode=1, port=0)
    with running(topology, tmp_path) as deployment:
        pids = deployment.pids
        os.kill(pids[victim], signal.SIGKILL)
        with pytest.raises(ProcessError, match=f"{victim} was killed by SIGKILL"):
            deployment.watch()
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    for instance in topology.instances:
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{instance.url}/health", timeout=2)
