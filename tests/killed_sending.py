"""Sends what is new in a folder of checkpoints, and dies before one of the changes on the store that this takes.

    python killed_sending.py FOLDER URL NUMBER

Prints how many changes it took, if it came through.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tandem.storage.bucket import Bucket
from tandem.storage.location import Location
from tandem.training.staging.checkpoints import Hosts, StoredCheckpoints

ALONE = Hosts(count=1, rank=0)


class Quiet:
    def begin(self, stage: str, steps: int | None, done: int = 0) -> None: ...

    def advance(self, done: int, numbers: str) -> None: ...

    def end(self, stage: str) -> None: ...


def stored(folder: Path, url: str, hosts: Hosts = ALONE) -> StoredCheckpoints:
    location = Location.of(url)
    assert location is not None
    return StoredCheckpoints(folder, Bucket.connect(location, os.environ), location, hosts, keep_last=2)


def main(folder: Path, url: str, number: int) -> None:
    points = itertools.count()

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            if next(points) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return called

    checkpoints = stored(folder, url)
    checkpoints.take_in(Quiet(), print)
    Bucket.upload, Bucket.write = deadly(Bucket.upload), deadly(Bucket.write)  # type: ignore[method-assign]
    Bucket.delete = deadly(Bucket.delete)  # type: ignore[method-assign]
    while checkpoints.send(lambda: True, lambda: None):
        pass
    print(next(points))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
