"""`GrowingFile`: a log whose disk may be full for a while."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class GrowingFile:
    """Appends to a file; what cannot be written is kept in memory and goes before what comes next.

    A run of weeks does not end because its log cannot grow.

    Args:
        path: Created where missing.
        note: Is told when writing begins to fail, and at the end what was lost.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self._path, self._note = path, note
        self._file = path.open("ab", buffering=0)
        self._kept = b""
        self._fails = False

    def append(self, content: bytes) -> None:
        """Write all there is; it is in the file, if not yet on the disk, when this returns, unless that was noted."""
        self._kept += content
        try:
            while self._kept:
                self._kept = self._kept[self._file.write(self._kept) :]
            self._fails = False
        except OSError as error:
            if not self._fails:
                self._note(
                    f"{self._path}: cannot be written ({error.strerror}); free disk space there, what comes meanwhile "
                    "is kept in memory"
                )
            self._fails = True

    def close(self) -> None:
        """Try once more, and close."""
        self.append(b"")
        if self._kept:
            self._note(f"{self._path}: the last {len(self._kept):,} bytes could not be written and are lost")
        self._file.close()
