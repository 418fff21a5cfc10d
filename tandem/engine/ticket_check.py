"""What may stand in a request's `kv_transfer_params`; everything else is refused with status 400 and the field's name.

An address or a name that cannot be one would otherwise fail deep in the transfer, as an error of this instance.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tandem.errors import RequestError
from tandem.protocol.identity import Role
from tandem.protocol.json_body import decode_body
from tandem.protocol.kv import KVTransferParams

WHERE: Final = "kv_transfer_params"
NEEDED: Final = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
NAME: Final = re.compile(r"[!-~]{1,256}")
"""Of a process or a ticket: printable, without blanks."""
HOST: Final = re.compile(r"[A-Za-z0-9._:%-]{1,255}")
"""A host's name or its address."""


def check_hand_off(hand_off: KVTransferParams, role: Role) -> None:
    """Refuse what this instance cannot do, or what is no ticket.

    Args:
        hand_off: The request's `kv_transfer_params`; without a flag where it has none.
        role: The instance's.

    Raises:
        RequestError: Naming the field at fault.
    """
    if hand_off.do_remote_decode and hand_off.do_remote_prefill:
        raise RequestError(f"{WHERE}: do_remote_decode and do_remote_prefill exclude each other", param=WHERE)
    if hand_off.do_remote_decode and role == "decode":
        raise RequestError(f"{WHERE}: this is a decode instance; send prefills to a prefill instance", param=WHERE)
    if hand_off.do_remote_decode and not NAME.fullmatch(hand_off.remote_request_id or "x"):
        raise _wrong("remote_request_id", "names no ticket; write 1 to 256 printable characters without blanks")
    if hand_off.do_remote_prefill:
        _check_ticket(hand_off, role)
    elif not hand_off.do_remote_decode and any(getattr(hand_off, name) is not None for name in NEEDED):
        raise _wrong("do_remote_prefill", "is missing beside a ticket; pass the prefill answer's field whole")


def is_ticket(hand_off: KVTransferParams, role: Role) -> bool:
    """Whether these are a ticket that this instance could take."""
    try:
        check_hand_off(hand_off, role)
    except RequestError:
        return False
    return hand_off.do_remote_prefill


class _Ticketed(msgspec.Struct):
    kv_transfer_params: KVTransferParams | None = None


def ticket_in(body: bytes) -> KVTransferParams | None:
    """The `kv_transfer_params` of a body, whatever else is wrong with it."""
    try:
        return decode_body(body, _Ticketed).kv_transfer_params
    except (RequestError, msgspec.ValidationError):
        return None


def _check_ticket(ticket: KVTransferParams, role: Role) -> None:
    if role == "prefill":
        raise RequestError(f"{WHERE}: this is a prefill instance; send tickets to a decode instance", param=WHERE)
    for name in NEEDED:
        if not getattr(ticket, name):
            raise _wrong(name, "is missing; pass the prefill answer's field whole")
    for name, form in (("remote_engine_id", NAME), ("remote_request_id", NAME), ("remote_host", HOST)):
        value = getattr(ticket, name)
        if not form.fullmatch(value):
            raise _wrong(name, f"{value[:80]!a} cannot be one; pass the prefill answer's field whole")
    if not 0 < (ticket.remote_port or 0) < 65536:
        raise _wrong("remote_port", f"{ticket.remote_port} is no port")
    if ticket.tp_size < 1:
        raise _wrong("tp_size", f"{ticket.tp_size} is no number of ranks; it must be at least 1")
    if ticket.remote_num_tokens is not None and ticket.remote_num_tokens < 1:
        raise _wrong("remote_num_tokens", f"{ticket.remote_num_tokens} tokens cannot be fetched; it must be at least 1")
    if any(block < 0 for group in ticket.remote_block_ids or () for block in group):
        raise _wrong("remote_block_ids", "holds a negative number; pass the prefill answer's field whole")
    if ticket.transfer_mode not in (None, "pull"):
        raise _wrong("transfer_mode", f"{ticket.transfer_mode[:80]!a} is not supported; it must be pull")


def _wrong(name: str, what: str) -> RequestError:
    return RequestError(f"{WHERE}.{name}: {what}", param=f"{WHERE}.{name}")
