"""How fast KV blocks are handed over, compared with the plain copy that each transport cannot do without.

The holder is a process of its own, the puller this one; a pull is measured from its request to its confirmation, under
uvloop as in an instance. By turns with it runs the plain copy of as many bytes: for shared memory a memcpy from one
buffer to another, the faster of torch's (with all its threads) and the C library's (with one); for TCP a loop of
`sendall` in the other process and one of `recv_into` here, over loopback, the faster of a socket as it comes and one
tuned as ours are. Each pull is measured with blocks in order and with blocks scattered over both caches. Everything is
warm; the numbers are medians. The exit code is 1 if a ratio is under its target.

    python benchmarks/hand_off.py
    python benchmarks/hand_off.py --mib 256 --rounds 31 --json
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import multiprocessing
import random
import socket
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import torch
import uvloop

from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.fake_holder import FakeHolder
from tandem.kv.messages import Pull
from tandem.kv.puller import Peer, Puller
from tandem.kv.server import TransferServer
from tandem.kv.shards import Shards
from tandem.kv.wire import tune

MIB = 2**20
LAYOUT = CacheLayout(layers=32, planes=2, kv_heads=8, head_dim=128, dtype="bfloat16", block_size=16)
TIMEOUT = 30.0
TARGETS = {"shm": 0.7, "tcp": 0.6}


def filled(blocks: int) -> Shards:
    cache = KVCache(LAYOUT, blocks, torch.device("cpu"))
    cache.memory.data.random_(0, 256)
    return Shards(LAYOUT, [cache])


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def order(blocks: int, scattered: bool, seed: int) -> list[int]:
    """Which block comes when."""
    places = list(range(blocks))
    if scattered:
        random.Random(seed).shuffle(places)
    return places


def hold(blocks: list[int], transports: list[str], engine_id: str, listener: socket.socket) -> None:
    """The other process: one ticket over these blocks for every pull."""

    class Holder(FakeHolder):
        def open(self, pull: Pull) -> object:
            self.add(pull.ticket, blocks)
            return super().open(pull)

    async def serve() -> None:
        await TransferServer(Holder(filled(len(blocks)), engine_id), listener, TIMEOUT, transports).start()
        await asyncio.Event().wait()

    uvloop.run(serve())


def pour(size: int, listener: socket.socket, tuned: bool) -> None:
    """The other process of the plain copy: `size` bytes for every byte it receives."""
    data = torch.randint(0, 256, (size,), dtype=torch.uint8).numpy().data
    sock, _ = listener.accept()
    if tuned:
        tune(sock)
    while sock.recv(1):
        sock.sendall(data)


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def memory_copies(size: int) -> list[Callable[[], object]]:
    source, target = torch.randint(0, 256, (size,), dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    return [
        lambda: target.copy_(source),
        lambda: ctypes.memmove(target.data_ptr(), source.data_ptr(), size),
    ]


def socket_copies(size: int) -> list[Callable[[], object]]:
    return [socket_copy(size, tuned) for tuned in (False, True)]


def socket_copy(size: int, tuned: bool) -> Callable[[], object]:
    listener = listening()
    multiprocessing.Process(target=pour, args=(size, listener, tuned), daemon=True).start()
    sock, view = socket.create_connection(listener.getsockname()), torch.zeros(size, dtype=torch.uint8).numpy().data
    if tuned:
        tune(sock)

    def fetch() -> None:
        sock.sendall(b"x")
        left = view
        while left:
            left = left[sock.recv_into(left) :]

    return fetch


def pulled(transport: str, blocks: int, shards: Shards, scattered: bool) -> Callable[[], Awaitable[bytes]]:
    listener, engine_id = listening(), f"benchmark-{transport}-{scattered}"
    args = (order(blocks, scattered, seed=1), [transport], engine_id, listener)
    multiprocessing.Process(target=hold, args=args, daemon=True).start()
    peer = Peer("127.0.0.1", listener.getsockname()[1], engine_id)
    request = Pull(ticket="ticket", engine_id=engine_id, digest="", content=b"")
    puller = Puller(shards, [transport], TIMEOUT)
    ours = order(blocks, scattered, seed=2)
    return lambda: puller.pull(peer, request, ours)


async def measure(
    transport: str, copies: list[Callable[[], object]], blocks: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Rates in GiB/s, and their ratio, of blocks in order and scattered."""
    shards = filled(blocks)
    pulls = [pulled(transport, blocks, shards, scattered) for scattered in (False, True)]
    await asyncio.sleep(5)
    times: list[list[float]] = [[] for _ in (*copies, *pulls)]
    for count in range(-3, rounds):
        taken = [seconds(copy) for copy in copies]
        for fetch in pulls:
            start = time.perf_counter()
            await fetch()
            taken.append(time.perf_counter() - start)
        if count >= 0:
            for kind, value in zip(times, taken, strict=True):
                kind.append(value)
    *plain, ordered, scattered = map(statistics.median, times)
    gib = blocks * LAYOUT.bytes_per_block / 2**30
    return {
        name: {
            "copy GiB/s": gib / min(plain),
            "pull GiB/s": gib / pulling,
            "ratio": min(plain) / pulling,
            "at least": TARGETS[transport],
        }
        for name, pulling in ((transport, ordered), (f"{transport}, scattered", scattered))
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64, help="size of what is handed over")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    size = options.mib * MIB
    blocks = size // LAYOUT.bytes_per_block
    results = {
        **uvloop.run(measure("shm", memory_copies(size), blocks, options.rounds)),
        **uvloop.run(measure("tcp", socket_copies(size), blocks, options.rounds)),
    }
    if options.json:
        print(json.dumps({"mib": options.mib, "rounds": options.rounds, "transports": results}, indent=2))
    else:
        print(f"{'':15}" + "".join(f"{column:>12}" for column in next(iter(results.values()))))
        for name, row in results.items():
            print(f"{name:15}" + "".join(f"{value:12.2f}" for value in row.values()))
    return int(any(row["ratio"] < row["at least"] for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
