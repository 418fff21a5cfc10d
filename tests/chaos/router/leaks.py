"""What a client must never see: what is between the router and the instances, and where these are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from chaos.router.client import Exchange
from chaos.router.load import Ask

INTERNAL = ("kv_transfer_params", "resume", "reservation", "do_remote_prefill", "remote_engine_id", "remote_request_id")
"""Fields of the hand-off; even a null tells that somebody forgot to take it out."""

IDS = ("token_ids", "prompt_token_ids")
"""Fields that only those get who ask for them; as a null they are vLLM's way to say nothing."""


def leaks(ask: Ask, got: Exchange, parts: Iterable[Any], secrets: Iterable[str]) -> list[str]:
    """Everything that leaked, each thing once."""
    return sorted({*_fields(ask, parts), *_secrets(got, secrets)})


def _fields(ask: Ask, parts: Iterable[Any]) -> Iterator[str]:
    for name, value in _pairs(list(parts)):
        if name in INTERNAL or (name in IDS and value is not None and not ask.wish.token_ids):
            yield name


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _pairs(one)


def _secrets(got: Exchange, secrets: Iterable[str]) -> Iterator[str]:
    headers = "\n".join(f"{name}: {value}" for name, value in got.headers)
    for secret in secrets:
        if secret.encode() in got.body:
            yield "an instance's address or process, in the body"
        if secret in headers:
            yield "an instance's address or process, in a header"
