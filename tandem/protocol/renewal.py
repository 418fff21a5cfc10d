"""Files that a process reads again when they change, without a restart: certificates, keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tandem.errors import UsageError

PERIOD_S: Final = 1.0
"""Between two looks; a look is a `stat` for each file."""

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int] | None
"""Of a file inode, size and time, which no two states of it share; None where there is none."""


@dataclass
class Watched:
    """Files that are read together."""

    paths: tuple[Path, ...]
    read: Callable[[], None]
    stamp: tuple[Stamp, ...]


class Renewal:
    """Looks after files; what they hold was read before `watch`."""

    def __init__(self) -> None:
        self._watched: list[Watched] = []

    def watch(self, paths: Iterable[Path], read: Callable[[], None]) -> None:
        """Have some files read again when one of them changes.

        Args:
            paths: The files.
            read: Reads them; raises UsageError where they cannot be used and what they held before stays in use.
        """
        paths = tuple(paths)
        self._watched.append(Watched(paths, read, _stamp(paths)))

    async def run(self) -> None:
        """Look for ever; cancel the task to end it."""
        while True:
            await asyncio.sleep(PERIOD_S)
            self.look()

    def look(self) -> None:
        """Read what has changed."""
        for watched in self._watched:
            if (stamp := _stamp(watched.paths)) == watched.stamp:
                continue
            # Taken before they are read: what is written meanwhile is seen at the next look.
            watched.stamp = stamp
            names = ", ".join(map(str, watched.paths))
            try:
                watched.read()
            except UsageError as error:
                log.error("%s; what was read before stays in use", error)  # noqa: TRY400 - the user's files, no bug
            else:
                log.info("%s: read again", names)


def _stamp(paths: tuple[Path, ...]) -> tuple[Stamp, ...]:
    return tuple(map(stamp_of, paths))


def stamp_of(path: Path) -> Stamp:
    """What changes whenever a file is written or replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
