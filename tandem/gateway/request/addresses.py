"""Where an instance is, or another machine beside it, in what it says: clients do not see it.

Hidden are links of every kind, addresses of IP, the instances' names where they have a dot or a port, and any other
name that has both. A plain word with a number (`param:12`), a time and a version stay.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

HIDDEN: Final = b"(address)"

BEGIN: Final = rb"(?:(?<![\w.\\-])|(?<=\\[nrt])|(?<=\\u[0-9a-f]{4}))"
"""No letter is before it, unless it ends what JSON writes with a backslash; of which no part is taken for its own."""
PORT: Final = rb":\d{1,5}"
LINK: Final = rb"[a-z][a-z0-9+.-]{1,15}://[^\s\"'<>\\]+"
NAME: Final = rb"(?:[\w-]+\.)+[a-z][\w-]*" + PORT
IPV4: Final = rb"(?:::ffff:)?\d{1,3}(?:\.\d{1,3}){3}(?:" + PORT + rb")?"
IPV6: Final = rb"(?:[0-9a-f]{1,4}:){1,7}(?::[0-9a-f]{1,4}){1,7}|(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}"
BRACKETS: Final = rb"\[[0-9a-f:.]+(?:%\w+)?\]" + PORT


def without_addresses(words: bytes, urls: Collection[str]) -> bytes:
    """An instance's words as a client may see them: without addresses and ports, its own or another one's.

    Args:
        words: What it said.
        urls: Of all instances.
    """
    return _addresses(frozenset(filter(None, (urlsplit(url).hostname for url in urls)))).sub(HIDDEN, words)


@lru_cache(8)
def _addresses(hosts: frozenset[str]) -> re.Pattern[bytes]:
    """It goes through words once: no part of it can be matched in two ways."""
    named = [
        re.escape(host).encode() + (b"(?:%b)?" % PORT if "." in host else PORT)
        for host in sorted(hosts, key=len, reverse=True)
    ]
    kinds = rb"|".join((LINK, *named, BRACKETS, NAME, IPV4, IPV6))
    return re.compile(BEGIN + rb"(?:" + kinds + rb")(?![\w-])", re.IGNORECASE)
