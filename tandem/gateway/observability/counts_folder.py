"""The folder in which the processes of one gateway keep what they count, so that each can show the sums of all.

It is taken out at the end. One whose gateway was killed stays behind, and the next gateway takes it out: it can tell,
because a folder in use is locked by every process that has its descriptor, and a lock ends with the last of these.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "tandem-gateway-counts-"
YOUNG_S: Final = 60.0
"""A folder whose last file is not as old may not have been locked yet."""


class CountsFolder:
    """A new one, empty; `close` takes it out."""

    def __init__(self) -> None:
        _clear()
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        self.path = self._folder.name
        self.descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        """For the processes to inherit, so that it is theirs as long as any of them lives."""
        with suppress(OSError):  # a file system without locks has nobody who could take one
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        """Take it out."""
        os.close(self.descriptor)
        self._folder.cleanup()


def _clear() -> None:
    """Take out what gateways of this user have left behind."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is somebody else's, or in use
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _take_out(path, descriptor)
            finally:
                os.close(descriptor)


def _take_out(path: Path, descriptor: int) -> None:
    """Take a folder out, if it is ours, and old enough.

    Raises:
        OSError: It is in use.
    """
    found = os.fstat(descriptor)
    if found.st_uid == os.geteuid() and time.time() - found.st_mtime > YOUNG_S:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
