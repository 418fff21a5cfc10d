"""A client that leaves an answer it would have got whole: nothing is computed for it a second later.

Each of these requests takes several seconds, so none of them ends by itself in that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.client import KEEP
from chaos.fleet import Shape
from chaos.instance import Instance
from chaos.standing import Standing, standing

SLOW = Shape(
    prefill=1,
    decode=1,
    transports=("auto",),
    policies=("fail",),
    options={"max-model-len": 512, "kv-cache-gib": 0.01, "max-num-seqs": 2, "max-num-batched-tokens": 2},
)
"""Two tokens in a step: a prompt of 480 takes 240 steps."""


@pytest.fixture(scope="module")
def slow(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(SLOW, tiny_model, tmp_path_factory.mktemp("slow")) as there:
        yield there


def body(**fields: Any) -> dict[str, Any]:
    prompt = [3 + place % 500 for place in range(fields.pop("length", 8))]
    return {"prompt": prompt, "max_tokens": 480, "temperature": 0, "ignore_eos": True} | fields


async def steps(there: Standing, instance: Instance) -> float:
    async with there.fleet.http.get(f"{instance.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("tandem_engine_steps_total")))


async def leave(there: Standing, instance: Instance, asked: list[dict[str, Any]]) -> tuple[float, float]:
    """Seconds from leaving until nobody holds a block on either side, and steps that were made by then."""
    before = await steps(there, instance)
    asking = [asyncio.create_task(there.ask(instance, one)) for one in asked]
    while await steps(there, instance) < before + 3:  # under way, however busy the machine is
        assert not any(one.done() for one in asking)
        await asyncio.sleep(0.01)
    assert not await there.all_idle()
    left = time.monotonic()
    for one in asking:
        one.cancel()
    while not await there.all_idle():
        assert time.monotonic() < left + 20
        await asyncio.sleep(0.01)
    return time.monotonic() - left, await steps(there, instance) - before


@pytest.mark.parametrize(
    ("side", "fields", "most"),
    [("decode", {}, 960), ("prefill", {}, 960), ("prefill", KEEP | {"length": 480, "stream": False}, 480)],
    ids=["decode", "whole", "prefill"],
)
def test_an_answer_that_is_not_streamed_is_given_up_when_its_client_leaves(
    slow: Standing, side: str, fields: dict[str, Any], most: int
) -> None:
    instance = slow.decode if side == "decode" else slow.prefill
    asked = [body(cache_salt=str(number), **fields) for number in range(4)]
    seconds, made = slow.do(leave(slow, instance, asked))
    print(f"\nidle {seconds:.2f} s after the client left, {made:.0f} steps of {most}")
    assert seconds < 1
    assert made < most, "it would have ended by itself"
