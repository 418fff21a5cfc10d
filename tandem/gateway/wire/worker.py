"""An instance behind the gateway, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from tandem.errors import UsageError
from tandem.protocol.identity import Role

BASE_URL: Final = re.compile(r"(?i:https?)://(\[[\w:.%]+\]|[\w.-]+)(:[0-9]*)?/?")
"""Nothing that a header, a line of the log or a page could take for something else."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One instance behind the gateway."""

    name: str
    """`prefill-0`, `decode-1`, …: all that a client ever learns about it."""
    url: str
    """Its base address, without a trailing slash."""
    role: Role
    """What it is asked to do; `both` when the gateway knows no prefill instances."""

    def __hash__(self) -> int:
        """Of its address alone, which Python keeps: it is asked for a dozen times in each request."""
        return hash(self.url)


def named(prefill: Sequence[str], decode: Sequence[str]) -> tuple[Worker, ...]:
    """Workers for base URLs, named by role and position; without prefill URLs the decode ones do both."""
    role: Role = "decode" if prefill else "both"
    return (
        *(Worker(name=f"prefill-{i}", url=url, role="prefill") for i, url in enumerate(prefill)),
        *(Worker(name=f"decode-{i}", url=url, role=role) for i, url in enumerate(decode)),
    )


def base_url(what: str, url: str) -> str:
    """An instance's address as it is written everywhere, without a trailing slash.

    Args:
        what: The option or field that it was given with.
        url: As it was given.

    Raises:
        UsageError: It is none.
    """
    if "@" in url:  # and is not repeated, because it may hold a password
        raise UsageError(f"{what}: an instance's URL holds a user; write http://HOST:PORT")
    try:
        sound = BASE_URL.fullmatch(url) is not None and urlsplit(url).port != 0
    except ValueError:  # an address of IPv6 that is none, or a port out of range
        sound = False
    if not sound:
        raise UsageError(f"{what}: {url!r} is not an instance's base URL; write http://HOST:PORT")
    return url.rstrip("/")
