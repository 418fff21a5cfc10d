from __future__ import annotations

import pytest

from tandem.topology.address import is_address, is_host, is_loopback, normal

ADDRESSES = ["10.0.0.18", "255.1.2.3", "::1", "2001:db8::7", "FE80::1", "fe80::1%eth0", "::ffff:10.0.0.1"]
NAMES = ["localhost", "node-1", "node_1", "_x", "a.b.c", "10.0.0.x", "4a", "x" * 63, ".".join(["x" * 49] * 5)]
NEITHER = [
    "", ".", "..", "a..b", ".a", "a.", "-a", "a-", "-oProxyCommand=x", "a b", "a/b", "../x", "a%eth0", "ä", "x" * 64,
    ".".join(["x" * 50] * 5), "999.1.1.1", "10.0.0", "1234", "10.0.0.01", "10.0.0.1%eth0", "10.0.0.1\n", "0.0.0.0",
    "::", ":", "fe80::zz", "fe80::1%", "fe80::1%../../x", "fe80::1%a b", "[::1]", "a:80", "10.0.0.1:80", "\u0661.1.1.1",
    "a\x00b", "~", "**", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", [*ADDRESSES, *NAMES])
def test_an_address_or_a_name_is_a_host(text: str) -> None:
    assert is_host(text)
    assert is_address(text) == (text in ADDRESSES)


@pytest.mark.parametrize("text", NEITHER)
def test_anything_else_is_none(text: str) -> None:
    assert not is_host(text)
    assert not is_address(text)


LOOPBACK = [
    "127.0.0.1", "127.8.9.10", "::1", "0:0:0:0:0:0:0:1", "::1%lo", "::ffff:127.0.0.1", "::FFFF:7f00:1", "localhost",
    "LOCALHOST", "localhost.localdomain", "x.Localhost", "ip6-localhost", "IP6-Loopback", "localhost6",
]  # fmt: skip
ELSEWHERE = ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "::2", "localhosts", "my-localhost", "node-1", "127.x", ""]


@pytest.mark.parametrize("host", [*LOOPBACK, *ELSEWHERE])
def test_what_means_this_host_wherever_it_is_read(host: str) -> None:
    assert is_loopback(host) == (host in LOOPBACK)


@pytest.mark.parametrize(
    ("host", "written"),
    [("FD00::0:2", "fd00::2"), ("FE80::1%eth0", "fe80::1%eth0"), ("10.0.0.1", "10.0.0.1"), ("N-1", "N-1")],
)
def test_an_address_has_one_spelling(host: str, written: str) -> None:
    assert normal(host) == written
