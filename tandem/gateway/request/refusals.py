"""What a request is refused for before it is served, besides counts: how it is sent, and what nobody needs to send."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import msgspec
from aiohttp import HttpVersion11, web

from tandem.errors import RequestError
from tandem.gateway.request.limits import MOST_PROMPTS
from tandem.protocol.json_body import decode_body
from tandem.protocol.openai import SALT, SALT_IN_WORDS

MOST_BESIDES: Final = 2**20
"""Bytes of a body besides what may be long; each value of it is decoded somewhere, which takes 25 times its memory."""
JSON_TYPE: Final = "application/json"
RANGES: Final[Mapping[str, tuple[int, int]]] = {
    "max_tokens": (0, 2**31 - 1),
    "max_completion_tokens": (0, 2**31 - 1),
    "priority": (-(2**31), 2**31 - 1),
    "deadline_seconds": (0, 10**9),
}
"""Of the numbers that the gateway reckons with; engines take no others, and no 0 where they generate."""


class Long(msgspec.Struct):
    """The fields that may be long, and are passed on as they are."""

    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")
    documents: msgspec.Raw = msgspec.Raw(b"")
    prompt_embeds: msgspec.Raw = msgspec.Raw(b"")


def check_bulk(raw: bytes) -> None:
    """Refuse a body of millions of fields, or of values where a number belongs, before it is taken apart.

    Raises:
        RequestError: 413; 400, when it is no JSON.
    """
    if len(raw) <= MOST_BESIDES:
        return
    try:
        long = decode_body(raw, Long)
    except msgspec.ValidationError:
        return  # it is no object: who decodes it says so at once
    besides = len(raw) - sum(memoryview(one).nbytes for one in msgspec.structs.astuple(long))
    if besides > MOST_BESIDES:
        names = ", ".join(msgspec.structs.asdict(long))
        message = f"the body has {besides} bytes besides {names}; more than {MOST_BESIDES} are not taken"
        raise RequestError(message, status=413, code="body_too_large")


def check_salt(salt: Any) -> None:
    """Refuse a `cache_salt` that an engine would not know what to do with, or would write where it does not belong.

    Raises:
        RequestError: 400.
    """
    if salt is not None and not (isinstance(salt, str) and re.match(SALT, salt)):
        raise RequestError(f"cache_salt: must be text {SALT_IN_WORDS}", param="cache_salt")


def check_number(name: str, value: Any) -> None:
    """Refuse a number that nobody can reckon with; what is none is the instance's to refuse.

    Raises:
        RequestError: 400, naming the field.
    """
    least, most = RANGES[name]
    if type(value) in (int, float) and not least <= value <= most:
        raise RequestError(f"{name}: must be a number of {least}..{most}", param=name)


def several(prompt: bytes) -> Sequence[msgspec.Raw]:
    """The elements of a list of prompts.

    Raises:
        RequestError: 400, when there are more than `MOST_PROMPTS`, before all of them are read, or it is no JSON.
    """
    if prompt.count(b",") < MOST_PROMPTS:
        return decode_body(prompt, list[msgspec.Raw])
    try:
        found = decode_body(prompt, _prompts())
    except msgspec.ValidationError:
        message = f"prompt: there are more than {MOST_PROMPTS} prompts; send fewer at a time"
        raise RequestError(message, param="prompt") from None
    return [one for one in msgspec.structs.astuple(found) if memoryview(one).nbytes]


@cache
def _prompts() -> type[msgspec.Struct]:
    """A list of at most so many: what has more fields than a struct ends its decoding there, and a list's would not."""
    names = [(f"_{place}", msgspec.Raw, msgspec.Raw(b"")) for place in range(MOST_PROMPTS)]
    return msgspec.defstruct("Prompts", names, array_like=True, forbid_unknown_fields=True)


def check_head(request: web.BaseRequest) -> None:
    """Refuse what a page of another site could have a browser send, and what has two lengths.

    A browser says where a page is from, and asks first before it sends JSON as such. Others may call it what they like:
    `curl -d` calls it a form.

    Raises:
        RequestError: 415 or 400.
    """
    kind = request.headers.get("Content-Type", "")
    if "Origin" in request.headers and kind.partition(";")[0].strip().lower() != JSON_TYPE:
        message = f"Content-Type: is {kind[:80]!r}; send JSON, with the header `Content-Type: {JSON_TYPE}`"
        raise RequestError(message, status=415, code="unsupported_media_type")
    if request.version < HttpVersion11 and "Transfer-Encoding" in request.headers:
        raise RequestError("Transfer-Encoding: HTTP/1.0 does not have it; send a Content-Length", code="invalid_http")
