"""Pages of holes in the heap are given back."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.parallel.heap import trim_heap

PIECE = 2**20
COUNT = 200


def resident() -> int:
    """Bytes of this process that are in memory."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is glibc's")
def test_holes_between_pieces_that_stay_are_given_back() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=60, check=True)
    before, after = (int(number) for number in done.stdout.split())
    assert before - after > 0.8 * COUNT * PIECE


def leave_holes() -> None:
    """Every second piece of the heap goes, every other stays; what is resident before and after is printed."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    library.mallopt(-3, 32 * PIECE)  # M_MMAP_THRESHOLD: pieces of this size are the heap's
    pieces = [library.malloc(PIECE) for _ in range(2 * COUNT)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    for piece in pieces[::2]:
        library.free(piece)
    before = resident()
    trim_heap()
    print(before, resident())


if __name__ == "__main__":
    leave_holes()
