"""Blocks encoded by several processes; what comes out is in the order of what goes in, however many there are."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tandem.errors import ProcessError
from tandem.training.data.encoding import Encoded, Encoder, Encoding
from tandem.training.data.readers.blocks import BLOCK_BYTES, Block
from tandem.training.interruption import deferred

WORTH_A_PROCESS = 8 * BLOCK_BYTES
"""Bytes of input for each worker below which starting it takes longer than its work."""
AHEAD = 3
"""Blocks on their way for each worker: one at work, and some so that it never waits."""


def choose_workers(asked: int | None, size: int) -> int:
    """How many processes to use: as asked, or one for each processor that this much input keeps busy."""
    if asked is not None:
        return asked
    return max(1, min(len(os.sched_getaffinity(0)), size // WORTH_A_PROCESS))


def encode_blocks(
    blocks: Iterable[Block], encoding: Encoding, encoder: Encoder, workers: int
) -> Iterator[tuple[Block, Encoded]]:
    """Every block with what became of it, in order.

    Args:
        blocks: Read as they are needed.
        encoding: What the worker processes make their encoders of.
        encoder: Made of it already; with one worker it does all the work here, with threads of its library.
        workers: At least 1.

    Raises:
        ProcessError: A worker died.
    """
    if workers == 1:
        yield from ((block, encoder.encode(block)) for block in blocks)
        return
    # Spawned: a fork copies the locks of threads that it does not copy.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    waiting: deque[tuple[Block, Future[Encoded]]] = deque()
    try:
        for block in blocks:
            with deferred():  # workers are started here
                waiting.append((block, pool.submit(_encode, encoding, block)))
            if len(waiting) >= AHEAD * workers:
                yield _done(waiting, encoder)
        while waiting:
            yield _done(waiting, encoder)
    except BrokenProcessPool:
        raise ProcessError(
            f"one of {workers} tokenising processes died, most likely for want of memory; use fewer with --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _done(waiting: deque[tuple[Block, Future[Encoded]]], encoder: Encoder) -> tuple[Block, Encoded]:
    block, future = waiting.popleft()
    try:
        return block, future.result()
    except RecursionError:  # a row nests too deep to be sent to a process, or back
        return block, encoder.encode(block)


def _begin() -> None:
    """A worker's life: one thread of work, and an end when the parent has ended."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@functools.lru_cache(maxsize=1)
def _encoder(encoding: Encoding) -> Encoder:
    return Encoder(encoding)


def _encode(encoding: Encoding, block: Block) -> Encoded:
    return _encoder(encoding).encode(block)
