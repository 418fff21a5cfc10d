"""What instances say reaches clients without the addresses in it."""

from __future__ import annotations

import time

import pytest

from tandem.gateway.request.addresses import without_addresses

URLS = ("http://10.0.0.9:9101", "https://decode:8443", "http://node-7.cluster.local:80", "http://[fd00::7]:9101")


@pytest.mark.parametrize(
    "said",
    [
        "http://10.0.0.9:9101/v1/completions",
        "10.0.0.9:9101",
        "10.0.0.9",
        "https://decode:8443",
        "DECODE:5600",
        "node-7.cluster.local:5600",
        "node-7.cluster.local",
        "[fd00::7]:9101",
        "http://[fd00::8]:1",
        "172.17.0.4:5600",
        "gpu-7.internal:9000",
        "http://gpu-7.internal/",
        "https://node-7.cluster.local/v1",
        "http://user:pw@10.0.0.1:3/",
        "tcp://gpu-7:5557",
        "fd00::17",
        "fe80::1",
        "[fe80::1%eth0]:80",
        "::ffff:10.0.0.1",
        "2001:db8:0:0:0:0:0:1",
    ],
)
@pytest.mark.parametrize("before", [" ", "\n", "\\n", "\\u003c", '"'])
def test_addresses_are_hidden(said: str, before: str) -> None:
    words = without_addresses(f'cannot pull from{before}{said}, "{said}": refused'.encode(), URLS).decode()
    assert words.removeprefix(f"cannot pull from{before}") in (
        '(address), "(address)": refused',
        '(address) "(address)": refused',  # what ends a link is as good as a part of it
    )


@pytest.mark.parametrize(
    "said",
    [
        *("decode cannot", "decoded: 1", "at 12:30:05", "1.5 of 3.25", "version 1.2.3", "a:80", "param:12", "12:30"),
        *("2026-11-22T16:12:50.123Z", '{"top_p":0.95,"n":1}', "std::vector", "x[::2]", "gpt-4.1: 12", "max_tokens.x"),
        *("Wed, 21 Oct 2026 07:28:00 GMT", "text/plain; charset=utf-8", "data:image/png;base64,AA//BB", "and/or"),
    ],
)
def test_other_words_stay(said: str) -> None:
    assert without_addresses(said.encode(), URLS) == said.encode()


@pytest.mark.parametrize(
    "part",
    [b"1", b"1.1.1.", b"[a", b"http://", b"a.", b"a-", b"a:", b"1:", b"a1::", b"::", b"node-7.", b"\\n1.", b"x "],
)
def test_long_words_are_gone_through_once(part: bytes) -> None:
    begun = time.monotonic()
    without_addresses(part * (2**19 // len(part)), URLS)
    assert time.monotonic() - begun < 0.7
