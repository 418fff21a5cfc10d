"""What is between the gateway and its instances, and not for clients: neither theirs to set nor theirs to see."""

from __future__ import annotations

from typing import Any, Final

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
        Exception: One of `UNREADABLE`: the answer is not a JSON object.
    """
    fields = msgspec.json.decode(answer, type=Fields)
    found = [name for name in OF_ANSWERS if fields.pop(name, None) is not None]
    return without_nested_tickets(msgspec.json.encode(fields) if found else answer)


def without_nested_tickets(told: bytes) -> bytes:
    """JSON without tickets, wherever in it they are; it is only decoded if there may be any.

    Raises:
        Exception: One of `UNREADABLE`: it is no JSON, although it seems to hold a ticket.
    """
    return msgspec.json.encode(_stripped(msgspec.json.decode(told))) if MARK in told else told


def lines_without_tickets(lines: bytes) -> bytes:
    """Lines of a stream without the tickets that an engine may have put into its events; raises like the above."""
    return b"\n".join(map(_without_ticket, lines.split(b"\n"))) if MARK in lines else lines


def _without_ticket(line: bytes) -> bytes:
    if MARK not in line or not line.startswith(b"data:"):
        return line
    return b"data: " + without_nested_tickets(line.removeprefix(b"data:"))


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stripped(one) for name, one in value.items() if name not in OF_ANSWERS}
    return [_stripped(one) for one in value] if isinstance(value, list) else value
