"""Every family served apart equals the same served together, token for token in fp32, over a real KV transfer."""

from __future__ import annotations

import asyncio
import socket
import uuid
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tandem.catalogue.arithmetic import kv_bytes_per_token
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import MODELS
from tandem.catalogue.named import TokenizerKind
from tandem.catalogue.shrink import shrink
from tandem.engine.assembly import assemble
from tandem.engine.config import TRANSPORTS, InstanceConfig, Transport
from tandem.engine.driver import Driver
from tandem.engine.request import Request
from tandem.engine.sampling import SamplingParams
from tandem.engine.update import Update
from tandem.kv.server import TransferServer
from tandem.model.families import read_config
from tandem.model.random_folder import write_random_folder
from tandem.protocol.identity import Role
from tandem.protocol.kv import KVTransferParams

LENGTHS = (1, 40, 127, 200, 300)
"""Prompts on both sides of the lengths at which the small models' scalings and windows set in (64 and 128)."""

COUNT = 70
"""Tokens of an answer; Qwen's next alpha would come at 128 and 256, so some answers pass both."""

NAMES = (
    "llama3.2-1b",
    "yi-6b",
    "mistral-7b",
    "mixtral-8x7b",
    "qwen-7b",
    "qwen2.5-0.5b",
    "glm3-6b",
    "glm4-9b",
    "baichuan2-13b",
    "deepseek-v3",
)


class Instance:
    """One instance in this process, its transfer server on loopback."""

    def __init__(self, folder: Path, role: Role, transport: Transport) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._transport = transport
        config = InstanceConfig(
            model=folder,
            role=role,
            dtype="float32",
            device="cpu",
            max_num_batched_tokens=96,
            kv_cache_gib=0.05,
            kv_transport=transport,
        )
        self.driver, _, _ = assemble(config, self._socket.getsockname()[1])

    async def __aenter__(self) -> Driver:
        self.driver.start()
        self._transfers = TransferServer(self.driver.holder, self._socket, 10.0, TRANSPORTS[self._transport])
        await self._transfers.start()
        return self.driver

    async def __aexit__(self, *_: object) -> None:
        await self.driver.stop()
        await self._transfers.stop()


def prompt(length: int) -> list[int]:
    return [(length * 31 + place * 17) % 200 for place in range(length)]


def ask(length: int, count: int, **fields: object) -> Request:
    sampling = SamplingParams(max_tokens=count, temperature=0.0)
    return Request(id=uuid.uuid4().hex, prompt=prompt(length), sampling=sampling, **fields)  # type: ignore[arg-type]


async def answer(driver: Driver, request: Request) -> list[Update]:
    updates = [update async for update in driver.generate(request)]
    assert updates[-1].error is None
    return updates


async def ticket(driver: Driver, length: int) -> KVTransferParams:
    last = (await answer(driver, ask(length, 1, keep_for_remote=True)))[-1]
    assert last.ticket is not None
    return last.ticket


async def together(driver: Driver) -> list[str]:
    answers = await asyncio.gather(*(answer(driver, ask(length, COUNT)) for length in LENGTHS))
    return ["".join(update.text for update in updates) for updates in answers]


async def apart(prefill: Driver, decode: Driver) -> list[str]:
    tickets = await asyncio.gather(*(ticket(prefill, length) for length in LENGTHS))
    asked = [ask(length, COUNT, fetch_from=one) for length, one in zip(LENGTHS, tickets, strict=True)]
    answers = await asyncio.gather(*(answer(decode, request) for request in asked))
    return ["".join(update.text for update in updates) for updates in answers]


GLM_HF = replace(MODELS["glm4-9b"].config, family="glm", norm_weight_wide=False)
"""GLM-4 in Hugging Face's layout, which has no name of its own."""

CASES: dict[str, tuple[ModelConfig, TokenizerKind]] = {
    **{name: (MODELS[name].config, MODELS[name].tokenizer) for name in NAMES},
    "glm-hf": (GLM_HF, "glm"),
}


ALIKE = ("mistral-7b", "qwen2.5-0.5b", "glm-hf")
"""Models whose blocks hold nothing that those of another do not."""


@pytest.mark.parametrize(
    ("name", "transport"),
    [
        *(pytest.param(name, "shm", marks=[pytest.mark.full] * (name in ALIKE)) for name in CASES),
        ("llama3.2-1b", "tcp"),
    ],
)
def test_served_apart_equals_served_together(name: str, transport: Transport, tmp_path: Path) -> None:
    folder = tmp_path / name
    config, tokenizer = CASES[name]
    write_random_folder(shrink(config), tokenizer, folder, dtype="float32", seed=0)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            roles: tuple[Role, ...] = ("both", "prefill", "decode")
            both, prefill, decode = [
                await stack.enter_async_context(Instance(folder, role, transport)) for role in roles
            ]
            expected = await together(both)
            assert await apart(prefill, decode) == expected
            assert len(set(expected)) == len(LENGTHS), "the model answers everything alike"
            assert decode.engine.stats.prompt_tokens_computed == 0
            sent = sum(-(-length // 16) for length in LENGTHS)
            assert prefill.engine.stats.kv_blocks_sent == decode.engine.stats.kv_blocks_received == sent
            assert decode.engine.options.block_bytes == 16 * kv_bytes_per_token(read_config(folder), 4)

    asyncio.run(asyncio.wait_for(scenario(), 120))


def test_latents_alone_are_what_deepseek_sends() -> None:
    assert kv_bytes_per_token(MODELS["deepseek-v3"].config, 2) == 61 * 576 * torch.bfloat16.itemsize
