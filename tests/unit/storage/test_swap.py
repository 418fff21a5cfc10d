"""Putting an object only where nobody was faster, also in a store that takes no conditions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tandem.storage.bucket import Bucket
from tandem.storage.location import Location

obstore = pytest.importorskip("obstore.store", reason="no obstore; install .[s3]")


def test_of_two_that_saw_the_same_one_puts() -> None:
    bucket = Bucket(obstore.MemoryStore(), Location("s3", "work", ""), "memory")
    assert bucket.swap("k", None, b"one")
    assert not bucket.swap("k", None, b"two")
    assert bucket.swap("k", b"one", b"three")
    assert not bucket.swap("k", b"one", b"four")
    assert bucket.read("k") == b"three"
    bucket.delete(["k"])
    assert not bucket.swap("k", b"three", b"five")


class Unconditional(BaseHTTPRequestHandler):
    """Takes objects, but none with a condition."""

    taken: bytes | None = None

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        refused = "If-None-Match" in self.headers or "If-Match" in self.headers
        if not refused:
            type(self).taken = content
        self.send_response(501 if refused else 200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any, **named: Any) -> None:
        """Nothing."""


@contextmanager
def served() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unconditional)
    Thread(target=server.serve_forever, daemon=True).start()
    yield "http://{}:{}".format(*server.server_address)
    server.shutdown()
    server.server_close()


def test_a_store_without_conditions_takes_the_last() -> None:
    with served() as address:
        variables = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        bucket = Bucket.connect(Location("s3", "work", ""), variables, patience=0.2)
        assert not bucket.unconditional
        assert bucket.swap("k", None, b"one")
        assert bucket.unconditional
        assert Unconditional.taken == b"one"
