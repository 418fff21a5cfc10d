"""Asks a running service one question and tells what happened where: who answered, what moved, how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tandem.errors import ProcessError
from tandem.protocol.client import AnswerStream, stream_chat, stream_completion
from tandem.topology.topology import Instance, Role, Topology

KV_BYTES = "tandem_kv_bytes_received_total"
PROMPT_TOKENS = "tandem_prompt_tokens_computed_total"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A completion's prompt, or one chat turn."""

    text: str
    is_chat: bool
    max_tokens: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one answer took."""

    prefill: str
    """Name of the instance that computed the prompt."""
    decode: str
    """Name of the instance that wrote the answer."""
    prompt_tokens: int
    completion_tokens: int
    decode_prompt_tokens: int
    """Prompt tokens that the decode instance computed: none, when prefill and decode are apart."""
    kv_bytes: int
    """Bytes of keys and values that moved."""
    first_token_s: float
    between_tokens_s: float
    """Mean from the first piece of the answer to the last; 0 for a single token."""


async def demonstrate(topology: Topology, question: Question, on_text: Callable[[str], None]) -> Report:
    """Ask through the gateway, streamed.

    Args:
        topology: A running service.
        question: What to ask.
        on_text: Gets the answer's text as it comes.

    Raises:
        ProcessError: The service broke off, or an instance cannot be asked for its counts.
        RequestError: The service refused.
    """
    before = await _counts(topology)
    start, times = time.perf_counter(), []
    async with _asked(topology, question) as stream:
        usage: dict[str, int] = {}
        async for text, event in stream:
            usage = event.get("usage") or usage
            if text:
                times.append(time.perf_counter())
                on_text(text)
        prefill, decode = stream.headers["X-Tandem-Prefill"], stream.headers["X-Tandem-Decode"]
    after = await _counts(topology)
    decoder = _named(topology, decode)
    return Report(
        prefill=prefill,
        decode=decode,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        decode_prompt_tokens=after[decoder][PROMPT_TOKENS] - before[decoder][PROMPT_TOKENS],
        kv_bytes=after[decoder][KV_BYTES] - before[decoder][KV_BYTES],
        first_token_s=times[0] - start if times else 0.0,
        # Not a median of gaps: several tokens may arrive in one read, and most gaps are nothing then.
        between_tokens_s=(times[-1] - times[0]) / max(usage["completion_tokens"] - 1, 1) if times else 0.0,
    )


def _asked(topology: Topology, question: Question) -> AbstractAsyncContextManager[AnswerStream]:
    url = topology.of(Role.GATEWAY)[0].url
    body: dict[str, Any] = {
        "max_tokens": question.max_tokens,
        "seed": question.seed,
        "stream_options": {"include_usage": True},
    }
    if question.is_chat:
        return stream_chat(url, body | {"messages": [{"role": "user", "content": question.text}]})
    return stream_completion(url, body | {"prompt": question.text})


def _named(topology: Topology, name: str) -> str:
    """The instance that the gateway calls `decode-0`: it numbers them by role, in the topology's order."""
    behind = topology.of(Role.DECODE) or topology.of(Role.BOTH)
    return behind[int(name.rpartition("-")[2])].name


async def _counts(topology: Topology) -> dict[str, dict[str, int]]:
    """Instance name -> metric -> count."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
        return {one.name: await _scrape(session, one) for one in topology.instances if one.role is not Role.GATEWAY}


async def _scrape(session: aiohttp.ClientSession, instance: Instance) -> dict[str, int]:
    try:
        async with session.get(f"{instance.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
    except (aiohttp.ClientError, OSError) as error:
        message = f"{instance.name} does not answer at {instance.url}/metrics ({error}); see its log"
        raise ProcessError(message) from None
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: int(float(values[name])) for name in (KV_BYTES, PROMPT_TOKENS)}
