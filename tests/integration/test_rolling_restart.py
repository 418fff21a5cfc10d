"""Every instance of a real service is restarted under load: each request is answered as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from test_serve import serving

from tandem.protocol.admin_client import AdminClient
from tandem.topology.file import read_topology
from tandem.topology.topology import Role

COMPLETION = {"max_tokens": 40, "ignore_eos": True}
BODIES: list[dict[str, Any]] = [
    COMPLETION | {"prompt": "def main(", "temperature": 0},
    COMPLETION | {"prompt": "import os", "temperature": 0.8, "seed": 5, "n": 2},
    COMPLETION | {"prompt": "class Tree:", "temperature": 0.9, "seed": 7, "presence_penalty": 0.5, "stream": True},
    COMPLETION | {"prompt": "return x", "temperature": 0, "logprobs": 2, "stream": True},
]
CLIENTS = 4
LIMIT_S = 240.0


async def answered(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> list[tuple[str, str]]:
    """Text and reason of each choice; whatever is no whole answer fails."""
    async with http.post(f"{url}/v1/completions", json=body) as response:
        text = await response.text()
        assert response.status == 200, text
    if not body.get("stream"):
        return [(choice["text"], choice["finish_reason"]) for choice in json.loads(text)["choices"]]
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    choices = [choice for event in map(json.loads, events) for choice in event["choices"]]
    return [("".join(choice["text"] for choice in choices), choices[-1]["finish_reason"])]


@pytest.mark.full
def test_every_instance_is_restarted_and_no_request_fails(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path, "--prefill", "2", "--decode", "2") as process:
        url = read_topology(tmp_path / "topology.yaml").of(Role.GATEWAY)[0].url
        admin = AdminClient(url, (tmp_path / "admin-key").read_text().strip())
        before = admin.topology()
        assert (tmp_path / "admin-key").stat().st_mode & 0o777 == 0o600
        ended = asyncio.Event()

        async def one_by_one() -> None:
            """Ask for the restart once requests flow, and wait for its end."""
            await asyncio.sleep(1)
            process.send_signal(signal.SIGUSR1)
            until = time.monotonic() + LIMIT_S
            try:
                while not await asyncio.to_thread(is_over):
                    assert process.poll() is None
                    assert time.monotonic() < until
                    await asyncio.sleep(0.5)
            finally:
                ended.set()

        def is_over() -> bool:
            now = admin.topology()
            old = {worker.engine_id for worker in before.workers}
            return all(worker.state == "up" and worker.engine_id not in old for worker in now.workers)

        async def client(http: aiohttp.ClientSession, expected: list[Any], start: int) -> int:
            count = 0
            while not ended.is_set():
                number = (start + count) % len(BODIES)
                assert await answered(http, url, BODIES[number]) == expected[number]
                count += 1
            return count

        async def scenario() -> None:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as http:
                expected = [await answered(http, url, body) for body in BODIES]
                clients = [client(http, expected, start) for start in range(CLIENTS)]
                _, *counts = await asyncio.gather(one_by_one(), *clients)
                print(f"{sum(counts)} requests, all as undisturbed")
                assert min(counts) > 3

        asyncio.run(scenario())
        after = admin.topology()
        assert after.epoch == before.epoch + 2 * len(before.workers)
        assert [worker.name for worker in after.workers] == [worker.name for worker in before.workers]
        assert process.poll() is None
