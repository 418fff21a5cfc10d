"""A file that lines are added to, and that may be moved away while it grows."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Final

from tandem.errors import UsageError

LOOK_S: Final = 1.0
"""Between two looks at whether the file is still the one at its path."""

log = logging.getLogger(__name__)


class LogFile:
    """A file that only grows; one that was moved away or taken out is begun anew, as `logrotate` expects.

    Several processes may write to the same one: a line is one write.

    Args:
        path: Where; None for standard error.

    Raises:
        UsageError: It cannot be written to.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._looked = time.monotonic()
        self._is_well = True
        try:
            self._descriptor = 2 if path is None else _opened(path)
        except OSError as error:
            raise UsageError(f"--access-log {path}: {error.strerror}; choose a file that can be written") from None

    def write(self, line: bytes) -> None:
        """Add a line; where that is not possible, the gateway goes on without."""
        try:
            self._look()
            os.write(self._descriptor, line)
            self._is_well = True
        except OSError as error:
            if self._is_well:
                log.warning("%s: requests are not logged: %s", self._path or "standard error", error.strerror)
            self._is_well = False

    def close(self) -> None:
        """Be done with it."""
        if self._path is not None:
            os.close(self._descriptor)

    def _look(self) -> None:
        now = time.monotonic()
        if self._path is None or now < self._looked + LOOK_S:
            return
        self._looked = now
        if not _is_at(self._path, self._descriptor):
            descriptor = _opened(self._path)
            os.close(self._descriptor)
            self._descriptor = descriptor


def _opened(path: Path) -> int:
    """Open it; a pipe that nobody reads, or not fast enough, is an error and holds up no request."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
