"""An S3 server on loopback, in memory, until its standard input ends: `python s3_server.py`. Prints its address."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

BUCKET = "work"
ABSENT = find_spec("moto") is None
REASON = "no moto; install .[s3server]"


@contextmanager
def s3_server() -> Iterator[Mapping[str, str]]:
    """A server with one empty bucket; yields the variables that lead to it."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        urllib.request.urlopen(urllib.request.Request(f"{address}/{BUCKET}", method="PUT")).close()
        yield {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "notforanyone"}
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print("http://{}:{}".format(*server.get_host_and_port()), flush=True)
    sys.stdin.read()
