"""Ranks as forks of a process that has everything imported, so that a world of them takes a fraction of a second."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tandem.parallel.place import Place


def forked(ranks: int, meeting: Path, part: Callable[[Place], int]) -> list[int]:
    """Have as many ranks take their part, and return their exit codes.

    Args:
        ranks: How many.
        meeting: The file through which they find each other; one of an earlier world is removed.
        part: What each does, from joining the others to its exit code.
    """
    meeting.unlink(missing_ok=True)
    places = [Place(rank=rank, ranks=ranks, local_rank=rank, meeting=f"file:{meeting}") for rank in range(ranks)]
    children = [_child(place, part) for place in places]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _child(place: Place, part: Callable[[Place], int]) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        code = part(place)
    except BaseException as error:  # noqa: BLE001 - whatever it is, this process must not go on as its parent's twin
        print(f"rank {place.rank}: {error!r}", file=sys.stderr, flush=True)
    os._exit(code)
