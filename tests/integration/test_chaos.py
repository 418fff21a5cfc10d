"""Real instances under load, killed and frozen meanwhile: every answer is right, every request ends, no block stays.

`PYTHONPATH=tests python -m chaos --requests 1000 --seed 7` runs one such trial and prints what came of it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chaos.client import KEEP, Asking, BrokenError, Client, RefusalError
from chaos.expectation import Answer, Expectation, Expected, check_end
from chaos.fleet import Shape
from chaos.instance import Instance
from chaos.ledger import Ending, Ledger
from chaos.standing import Standing, standing
from chaos.trial import Report, trial
from chaos.workload import Job, Way, Workload

from tandem.engine.sampling import SamplingParams
from tandem.kv import nixl
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.messages import Keep
from tandem.kv.puller import Peer, Puller
from tandem.kv.shards import Shards
from tandem.text.stop import StopMatcher

SHAPES = {
    "2+2": Shape(),
    "2+2-tcp": Shape(transports=("tcp",)),
    "tp2-tp2": Shape(prefill=1, decode=1, prefill_ranks=2, decode_ranks=2),
    "tp2-tp1": Shape(prefill=1, decode=1, prefill_ranks=2, decode_ranks=1),
    "tp1-tp2": Shape(prefill=1, decode=1, prefill_ranks=1, decode_ranks=2, transports=("tcp",)),
}

NIXL = Shape(prefill_transports=("nixl",), transports=("nixl",))

LEASE = 2.0

ROOMY = Shape(
    prefill=1,
    decode=1,
    transports=("auto",),
    policies=("fail",),
    options={"kv-cache-gib": 0.002, "max-num-batched-tokens": 12, "kv-lease-seconds": LEASE},
)
"""Prompts go through in small chunks, so that there is time to leave in between."""


def run(folder: Path, logs: Path, shape: Shape, requests: int, strikes: int) -> Report:
    report = asyncio.run(trial(folder, logs, shape, seed=7, requests=requests, strikes=strikes))
    print(f"\n{report}")
    report.check()
    assert report.ledger.count("finished") > requests / 2
    return report


@pytest.mark.full
def test_every_request_ends_as_it_should_and_no_block_is_lost(tiny_model: Path, tmp_path: Path) -> None:
    report = run(tiny_model, tmp_path, SHAPES["2+2"], requests=200, strikes=5)
    for what in ("preemptions", "prefix_cache_evictions", "prefix_cache_hits", "kv_leases_expired"):
        assert report.totals[f"{what}_total"] > 0, f"the load brought about no {what}"


@pytest.mark.full
def test_with_two_ranks_on_one_side(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, SHAPES["tp2-tp1"], requests=200, strikes=3)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape", SHAPES)
def test_for_long(shape: str, tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, SHAPES[shape], requests=1000, strikes=20)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(not nixl.installed(), reason="the nixl package is not installed")
def test_by_nixl(tiny_model: Path, tmp_path: Path) -> None:
    report = run(tiny_model, tmp_path, NIXL, requests=200, strikes=5)
    assert report.totals["kv_transfers_received_total"] > 100


@pytest.fixture(scope="module")
def roomy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(ROOMY, tiny_model, tmp_path_factory.mktemp("roomy")) as there:
        yield there


def job(number: int, way: Way) -> Job:
    prompt = [3 + (number * 131 + place * 7) % 500 for place in range(190)]
    body = {"prompt": prompt, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    return Job(number=number, body=body, way=way, seed=number)


@pytest.mark.full
def test_a_client_that_is_gone_is_gone_on_both_sides_within_a_second(roomy: Standing) -> None:
    """At many moments between the question and the answer's end."""
    client = Client(roomy.fleet, Ledger())
    ways: tuple[Way, ...] = ("plain", "early")

    async def leave(number: int, seconds: float) -> tuple[str, float]:
        asking = Asking(job(number, ways[number % 2]))
        seen = "nothing: the answer was whole"
        try:
            async with asyncio.timeout(seconds):
                await client.attempt(asking)
        except TimeoutError:
            stages = ("decoding", asking.choices[0].tokens), ("handing over", asking.tickets), ("prefilling", True)
            seen = next(stage for stage, reached in stages if reached)
        left = time.monotonic()
        for ticket in asking.tickets[:1] if seen == "handing over" else []:
            await client.release(ticket)  # as a gateway does: it may not have come to show it
        while not await roomy.all_idle():
            assert time.monotonic() < left + 1, f"{await roomy.fleet.audits()} a second after the client left, {seen}"
            await asyncio.sleep(0.01)
        return seen, time.monotonic() - left

    async def whole() -> float:
        begun = time.monotonic()
        await client.attempt(Asking(job(100, "early")))
        return time.monotonic() - begun

    lasts = roomy.do(whole())
    left = [roomy.do(leave(number, lasts * (0.02 + number / 24))) for number in range(24)]
    stages = Counter(seen for seen, _ in left)
    print(f"\na request lasts {lasts:.2f} s; left while {dict(stages)}; idle after {max(s for _, s in left):.2f} s")
    assert {"prefilling", "handing over", "decoding"} <= set(stages)


async def ticket(there: Standing, number: int) -> dict:
    status, answer = await there.ask(there.prefill, job(number, "plain").body | KEEP)
    assert status == 200
    return answer["kv_transfer_params"]


async def gone_after(there: Standing, limit: float) -> float:
    begun = time.monotonic()
    while (await there.prefill.audit(there.fleet.http))["leases"]:
        assert time.monotonic() < begun + limit, "the lease outlives its time"
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


def test_a_ticket_nobody_uses_is_gone_after_its_time(roomy: Standing) -> None:
    async def scenario() -> None:
        await asyncio.gather(*(ticket(roomy, number) for number in range(200, 203)))
        assert await gone_after(roomy, LEASE + 0.5) > LEASE - 0.5
        assert await roomy.all_idle()

    roomy.do(scenario())


def test_a_heartbeat_renews_a_ticket(roomy: Standing) -> None:
    async def scenario() -> None:
        params = await ticket(roomy, 210)
        peer = Peer(params["remote_host"], params["remote_port"], params["remote_engine_id"])
        layout = CacheLayout(layers=1, planes=1, kv_heads=1, head_dim=1, dtype="float32", block_size=1)
        puller = Puller(Shards(layout, [KVCache(layout, 1, torch.device("cpu"))]), ["tcp"], 1.0)
        for _ in range(6):
            await puller.keep(peer, Keep(peer.engine_id, [params["remote_request_id"]]), 1.0)
            await asyncio.sleep(LEASE / 4)
            assert (await roomy.prefill.audit(roomy.fleet.http))["leases"] == 1
        await puller.keep(peer, Keep("another process", [params["remote_request_id"]]), 1.0)
        assert await gone_after(roomy, LEASE + 0.3) < LEASE
        assert await roomy.all_idle()

    roomy.do(scenario())


def test_tickets_of_a_dead_decode_instance_expire(roomy: Standing) -> None:
    client = Client(roomy.fleet, Ledger())

    async def prefill(number: int) -> None:
        """Asked of both; only the prefill is read to its end."""
        body = job(number, "early").body
        async with aclosing(client._events(roomy.prefill, body | KEEP)) as events:
            shown = body | {"kv_transfer_params": (await anext(events))["kv_transfer_params"]}
            decoding = asyncio.create_task(roomy.ask(roomy.decode, shown))
            async for _ in events:
                pass
        await asyncio.gather(decoding, return_exceptions=True)

    async def audit() -> dict[str, int]:
        return await roomy.prefill.audit(roomy.fleet.http)

    async def expired() -> float:
        return (await roomy.prefill.metrics(roomy.fleet.http))["kv_leases_expired_total"]

    async def scenario() -> None:
        before = await expired()
        asked = [asyncio.create_task(prefill(220 + one)) for one in range(8)]
        while not (await audit())["pulls"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        roomy.decode.condemn()
        roomy.decode.kill()
        await asyncio.gather(*asked)
        left = (await audit())["leases"]
        assert left > 0
        assert await gone_after(roomy, LEASE + 0.5) > LEASE - 0.5
        assert await expired() >= before + left
        ended = await audit()
        assert ended["free"] == ended["blocks"]
        await roomy.fleet.revive(roomy.decode)
        assert await roomy.all_idle()

    roomy.do(scenario())


def characters(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


ASKED = SamplingParams(max_tokens=6, stops=("cd", "y"), end_token_ids=frozenset(b"."))
AFTER_TWO, AFTER_THREE = (replace(ASKED, min_tokens=count) for count in (2, 3))


@pytest.mark.parametrize(
    ("tokens", "text", "reason", "asked"),
    [
        (b"abxxxx", "abxxxx", "length", ASKED),
        (b"abcd", "ab", "stop", ASKED),
        (b"ab.", "ab", "stop", ASKED),
        (b"ycdy", "ycd", "stop", replace(ASKED, min_tokens=4)),
        (b"xcd", "x", "stop", AFTER_TWO),
        (b"xcdxxx", "xcdxxx", "length", AFTER_THREE),
        ("äcd".encode(), "ä", "stop", AFTER_THREE),
    ],
)
def test_an_answer_may_end_as_it_was_asked_to(tokens: bytes, text: str, reason: str, asked: SamplingParams) -> None:
    check_end(Answer([*tokens], text, reason), asked, characters)


@pytest.mark.parametrize(
    ("tokens", "text", "reason", "asked"),
    [
        (b"abcdxx", "abcdxx", "length", ASKED),  # a stop string is missed
        (b"abcd", "abcd", "stop", ASKED),
        (b"abcd.", "abcd", "stop", ASKED),
        (b"abcdx", "ab", "stop", ASKED),  # it is seen too late
        (b"xxabcd", "xxabcd", "length", ASKED),
        (b"ycd", "yc", "stop", ASKED),  # another one came before
        (b"xcdxxx", "xcdxxx", "length", AFTER_TWO),
        (b"cd", "", "stop", AFTER_THREE),  # one that may not end it yet
        (b"xx.x", "xx.x", "length", ASKED),
        (b"xx.", "xx.", "length", ASKED),
        (b"abx", "abx", "stop", ASKED),  # there is no reason to end
        (b"abx", "abx", "length", ASKED),
        (b"abxxxxx", "abxxxxx", "length", ASKED),
        (b"abxxxx", "abxxx", "length", ASKED),
    ],
)
def test_an_answer_that_ends_otherwise_is_seen(tokens: bytes, text: str, reason: str, asked: SamplingParams) -> None:
    with pytest.raises(AssertionError):
        check_end(Answer([*tokens], text, reason), asked, characters)


def test_an_engine_that_misses_stop_strings_is_seen(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopMatcher, "push", lambda _, text: text)
    with pytest.raises(AssertionError, match="it went on after a stop string"):
        Expectation(tiny_model).settle(Workload(7), 20)


@pytest.mark.parametrize(
    ("tokens", "text", "reason", "agrees"),
    [
        ([], "", None, True),
        ([5, 6], "a", None, True),
        ([5, 6, 7], "abc", None, True),
        ([5, 6, 7], "abc", "length", True),
        ([5, 7], "a", None, False),
        ([5, 6], "b", None, False),
        ([5, 6, 7, 8], "abc", None, False),
        ([5, 6, 7], "abc", "stop", False),
        ([5, 6], "abc", "length", False),
    ],
)
def test_what_came_of_a_request_that_failed_is_compared(
    tokens: list[int], text: str, reason: str | None, agrees: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Client, asking: Asking) -> None:
        asking.take({"choices": [{"index": 0, "token_ids": tokens, "text": text, "finish_reason": reason}]})
        asking.begin()
        raise RefusalError(502, "broke off")

    monkeypatch.setattr(Client, "attempt", fail)
    ledger, expected = Ledger(), Expected(job(1, "plain"), [Answer([5, 6, 7], "abc", "length")], 1.0)
    asyncio.run(Client(None, ledger).perform(expected))
    assert (ledger.count("failed"), not ledger.wrong) == (1, agrees)


KILLED, FROZEN, LATE, DOUBTFUL = "killed", "frozen", "deadline", "doubtful ticket"


@pytest.mark.parametrize(
    ("reason", "explained_by"),
    [
        ("broken: decode-0: ServerDisconnectedError()", {KILLED}),
        ("502: KV hand-off from 127.0.0.1:1: not reachable (refused)", {KILLED}),
        ("502: KV hand-off from 127.0.0.1:1 broke off (reset)", {KILLED}),
        ("502: KV hand-off from 127.0.0.1:1: silent for 3 s; is that instance frozen?", {KILLED, FROZEN}),
        ("502: refused: the KV ticket is used up, expired or unknown here", {KILLED, FROZEN, LATE, DOUBTFUL}),
        ("504: the request's deadline_seconds are over; allow it more time", {LATE}),
        ("500: the instance failed: rank 1 of 2 died", {KILLED}),
        ("500: something new", set()),
        ("hung for 60.0 s", set()),
    ],
)
def test_a_failure_is_explained_by_what_brings_it_about_alone(reason: str, explained_by: set[str]) -> None:
    causes = (KILLED, FROZEN, LATE, DOUBTFUL)
    found = {one for one in causes if Ending(1, "plain", "failed", reason, frozenset({one})).explained}
    assert found == explained_by
    assert not Ending(1, "plain", "failed", reason).explained


def test_what_was_done_to_an_instance_counts_while_it_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance("decode-0", "decode", tmp_path, tmp_path, {})
    monkeypatch.setattr(Instance, "pid", os.getpid())
    monkeypatch.setattr(os, "kill", lambda *_: None)
    instance.freeze()
    assert instance.done_to(time.monotonic()) == {"frozen"}
    instance.thaw()
    assert instance.done_to(time.monotonic()) == set()
    before = time.monotonic()
    instance.condemn()
    assert instance.done_to(before) == {"killed"}
    asking = Asking(job(1, "plain"))
    asking.used, asking.since = [instance], before
    other = Instance("prefill-0", "prefill", tmp_path, tmp_path, {})
    assert asking.causes(BrokenError(instance, OSError())) == {"killed"}
    assert asking.causes(BrokenError(other, OSError())) == set(), "it was not the one whose connection broke"
    assert asking.causes(RefusalError(502, "broke off")) == {"killed"}
    asking.restart()
    assert asking.causes(BrokenError(instance, OSError())) == set(), "that was the attempt before"
