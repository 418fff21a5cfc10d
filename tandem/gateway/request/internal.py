"""What is between the gateway and its instances, and not for clients: neither theirs to set nor theirs to see."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

Fields = dict[str, msgspec.Raw]

KV_FIELD: Final = "kv_transfer_params"
OF_ANSWERS: Final = (KV_FIELD, "ec_transfer_params")
"""Tickets for keys and values, and vLLM's for what an encoder has made of an image."""
INTERNAL: Final = frozenset((*OF_ANSWERS, "reservation", "data_parallel_rank"))
"""Whose blocks to use, and which rank of an instance."""
XARGS: Final = "vllm_xargs"
"""What vLLM puts in the same place as its own `kv_transfer_params`."""
MARK: Final = b'_transfer_params"'
"""Stands in every event that holds a ticket; not in texts, where a quote has a backslash before it."""
HIDDEN: Final = b"(address)"


def drop_from_request(fields: Fields) -> None:
    """Take out of a client's fields what is not for clients to set, however it is spelled and wherever vLLM looks."""
    for name in INTERNAL.intersection(fields):
        del fields[name]
    if XARGS in fields:
        try:
            inner = msgspec.json.decode(fields[XARGS], type=Fields)
        except (msgspec.MsgspecError, RecursionError):
            return  # it is no object, which is the instance's to refuse
        kept = {name: raw for name, raw in inner.items() if name not in INTERNAL}
        fields[XARGS] = msgspec.Raw(msgspec.json.encode(kept))


def without_tickets(answer: bytes) -> bytes:
    """A whole answer as the client may see it.

    Raises:
        msgspec.DecodeError: The answer is not a JSON object.
    """
    fields = msgspec.json.decode(answer, type=Fields)
    found = [name for name in OF_ANSWERS if fields.pop(name, None) is not None]
    return msgspec.json.encode(fields) if found else answer


def lines_without_tickets(lines: bytes) -> bytes:
    """Lines of a stream without the tickets that an engine may have put into its events."""
    return b"\n".join(_without_ticket(line) for line in lines.split(b"\n"))


def _without_ticket(line: bytes) -> bytes:
    if MARK not in line or not line.startswith(b"data:"):
        return line
    event: dict[str, Any] = msgspec.json.decode(line.removeprefix(b"data:"))
    for name in OF_ANSWERS:
        event.pop(name, None)
    return b"data: " + msgspec.json.encode(event)


def without_addresses(words: bytes, urls: Collection[str]) -> bytes:
    """An instance's words as a client may see them: without addresses and ports, its own or another one's.

    Args:
        words: What it said.
        urls: Of all instances.
    """
    return _addresses(frozenset(filter(None, (urlsplit(url).hostname for url in urls)))).sub(HIDDEN, words)


@lru_cache(8)
def _addresses(hosts: frozenset[str]) -> re.Pattern[bytes]:
    ipv4 = rb"\d{1,3}(?:\.\d{1,3}){3}"
    named = [re.escape(host).encode() for host in sorted(hosts, key=len, reverse=True)]
    with_port = rb"(?:" + rb"|".join([*named, ipv4, rb"\[[0-9a-f:.]+\]"]) + rb"):\d{1,5}"
    return re.compile(rb"(?:https?://)?(?<![\w.-])(?:" + with_port + rb"|" + ipv4 + rb")(?![\w-])", re.IGNORECASE)
