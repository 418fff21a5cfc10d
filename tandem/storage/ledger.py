"""`Ledger`: what a folder and a location had in common when they were last looked at.

    <folder>/.tandem-sync-<digest of the location>.jsonl        [name, size, mtime_ns, etag], a line each

A file is as its object if both are as they are written here. No clocks are compared, and large files are read again
only where nothing is written of them. It may be lost at any time: then digests are compared, or the file is copied.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

from tandem.files import write_whole
from tandem.storage.bucket import CHUNK, PART, Entry
from tandem.storage.location import Location

NAME: Final = ".tandem-sync-"


class Ledger:
    """Of one folder and one location. Threads may use it together; every line is on its way to the disk at once.

    Args:
        folder: Need not exist yet.
        location: The other side.
    """

    def __init__(self, folder: Path, location: Location) -> None:
        self._folder = folder
        self._path = folder / f"{NAME}{hashlib.sha256(str(location).encode()).hexdigest()[:12]}.jsonl"
        self._known = self._read()
        self._lock = Lock()

    def alike(self, name: str, entry: Entry) -> bool:
        """Whether a file is as an object is; reads the file where this is not known."""
        path = self._folder / name
        if not path.is_file() or path.stat().st_size != entry.size:
            return False
        if self._known.get(name) == [*state_of(path), entry.etag]:
            return True
        same = etag_of(path, entry.etag) == entry.etag
        if same:
            self.keep(name, entry, state_of(path))
        return same

    def keep(self, name: str, entry: Entry, state: list[object]) -> None:
        """A file, as it was in a certain state, and an object are alike."""
        fields = [*state, entry.etag]
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(_line(name, fields))
            self._known[name] = fields

    def unchanged(self, name: str) -> bool:
        """Whether a file is what it was when it was last as its object."""
        known = self._known.get(name)
        return known is not None and known[:2] == state_of(self._folder / name)

    def _read(self) -> dict[str, list[object]]:
        known: dict[str, list[object]] = {}
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._path.exists() else []
        for line in lines:
            with suppress(ValueError, TypeError):  # cut off by a kill
                name, *fields = json.loads(line)
                known[name] = fields
        if len(lines) > 2 * len(known):
            write_whole(self._path, "".join(_line(name, fields) for name, fields in known.items()).encode())
        return known


def etag_of(path: Path, like: str) -> str | None:
    """The ETag of a file's content by the rule that another ETag was made by; None where that is not known."""
    _, dash, parts = like.partition("-")
    size = path.stat().st_size
    with path.open("rb") as file:
        if not dash:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if not parts.isdecimal() or int(parts) != -(-size // PART):
            return None
        digests = hashlib.md5(usedforsecurity=False)
        for _ in range(int(parts)):
            part = hashlib.md5(usedforsecurity=False)
            for _ in range(PART // CHUNK):
                part.update(file.read(CHUNK))
            digests.update(part.digest())
    return f"{digests.hexdigest()}-{parts}"


def _line(name: str, fields: list[object]) -> str:
    return json.dumps([name, *fields]) + "\n"


def state_of(path: Path) -> list[object]:
    """What changes when a file does: its size and when it was written, in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
