"""An instance's place in a rank table as a name that it serves, for engines that have no `/identity`.

vLLM lists its served names at `/v1/models`. One of them is `tandem-seat/ROLE/DEVICES@HOST/TABLE`; it tells the gateway
what our own instances tell at `/identity`, and the gateway takes it out of what clients see.
"""

from __future__ import annotations

import re
from typing import Any, Final, get_args

import msgspec

from tandem.protocol.identity import Role, Seat

PREFIX: Final = "tandem-seat/"
PATTERN: Final = re.compile(rf"{PREFIX}({'|'.join(get_args(Role))})/([0-9]+(?:,[0-9]+)*)@([^/]+)/([0-9a-f]+)")

IN_WORDS: Final = re.compile(rb",? ?" + PREFIX.encode() + rb"[a-z]+/[0-9,]+@[^/\s]+/[0-9a-f]+")


def seat_name(role: Role, seat: Seat) -> str:
    """The name that says a role and a seat."""
    return f"{PREFIX}{role}/{','.join(map(str, seat.devices))}@{seat.host}/{seat.table}"


def read_seat_name(name: str) -> tuple[Role, Seat] | None:
    """What a name says; None for one that is no seat's."""
    if (found := PATTERN.fullmatch(name)) is None:
        return None
    role: Role = next(role for role in get_args(Role) if role == found[1])
    return role, Seat(host=found[3], devices=tuple(map(int, found[2].split(","))), table=found[4])


class Listed(msgspec.Struct, frozen=True):
    """One entry of a model list."""

    id: str = ""


def without_seat_names(models: bytes) -> bytes:
    """The answer of `/v1/models` as a client may see it; what is no such answer stays as it is."""
    if PREFIX.encode() not in models:
        return models
    try:
        listed = msgspec.json.decode(models, type=dict[str, Any])
        cards = msgspec.convert(listed["data"], list[Listed])
    except (msgspec.DecodeError, UnicodeError, KeyError):
        return hide_seat_names(models)
    kept = [whole for whole, card in zip(listed["data"], cards, strict=True) if read_seat_name(card.id) is None]
    return msgspec.json.encode(listed | {"data": kept})


def hide_seat_names(text: bytes) -> bytes:
    """An engine's words as a client may see them: vLLM lists all its names where it does not know one."""
    return IN_WORDS.sub(b"", text)
