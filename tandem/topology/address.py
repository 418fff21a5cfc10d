"""What may stand for a host: its address or its name, as tables, file names and command lines carry them."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

ADDRESS = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]{1,32})?")
"""What must be an IP address, since no name looks like it; after `%` stands the interface of an IPv6 address."""
LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
"""What a name has between its dots; RFC 1123, and `_`, which names of containers have."""
LONGEST_NAME = 253
LOOPBACK_NAMES = {"localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback"}
"""What distributions' /etc/hosts call the loopback addresses."""


def is_address(text: str) -> bool:
    """Whether it is the IP address of some host; 0.0.0.0 and :: are of none."""
    if not ADDRESS.fullmatch(text):
        return False
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


@lru_cache(maxsize=4096)  # a table of many hosts is checked several times
def is_host(text: str) -> bool:
    """Whether it is the IP address or the name of some host."""
    if ADDRESS.fullmatch(text):
        return is_address(text)
    return len(text) <= LONGEST_NAME and all(LABEL.fullmatch(label) for label in text.split("."))


@lru_cache(maxsize=4096)
def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this host itself, wherever it is read."""
    if is_address(host):
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    name = host.lower()
    return name in LOOPBACK_NAMES or name.endswith(".localhost")


def normal(host: str) -> str:
    """A host as it is written everywhere: of an address' spellings the usual one, a name as it is."""
    return str(ipaddress.ip_address(host)) if is_address(host) else host
