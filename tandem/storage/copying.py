"""Make a location as a folder is, or a folder as a location: only what differs is copied, several files at once.

What differs: sizes, and where they are equal what `Ledger` says. A file gets its name when it is whole, on either side,
so a kill at any moment leaves whole files, and the same command goes on; a file that was under way begins anew.

Files that say of others that they are there (`POINTERS`, `MARKS`) come last, and a mark that will change goes first, so
that what is found by them is there. Without being told, nothing is deleted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Final, Protocol

from tandem.errors import StorageError
from tandem.files import require_regular
from tandem.storage.bucket import Bucket, Entry, Tick
from tandem.storage.ledger import NAME, Ledger, state_of
from tandem.storage.location import Location

POINTERS: Final = ("latest_checkpointed_iteration.txt",)
MARKS: Final = ("*_prepared.json", "*_hf.json")
MEGABYTE: Final = 1 << 20
STAGE: Final = "sync"


class Listener(Protocol):
    """Is told how a sync goes, from one thread at a time."""

    def begin(self, stage: str, steps: int | None, done: int = 0) -> None:
        """It begins, with so many megabytes (2^20 bytes) to copy."""

    def advance(self, done: int, numbers: str) -> None:
        """So many of them are copied."""

    def end(self, stage: str) -> None:
        """Everything is copied."""


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What was done."""

    copied: int
    """Files."""
    bytes: int
    """Of these files."""
    same: int
    """Files that were alike already."""
    deleted: int


def upload(folder: Path, bucket: Bucket, to: Location, listener: Listener, *, delete: bool = False, workers: int = 8,
           known: bool = False, names: Collection[str] | None = None) -> Synced:  # fmt: skip
    """Make a location as a folder is.

    Args:
        folder: All files in it and below; parts and notes of ours are left out.
        bucket: The location's.
        to: A key below which the objects go.
        listener: Is told how it goes.
        delete: Remove objects that are no files there.
        workers: Files at once.
        known: Ask nothing of the store, and copy what has changed here since a file was last as its object.
        names: Those that take part; None for all.

    Raises:
        StorageError: The store refuses, or a file cannot be read; what was copied before stays.
    """
    ledger = Ledger(folder, to)
    here = {name: (folder / name).stat().st_size for name in _of(names, files_below(folder))}
    there = {} if known else _entries(bucket, to, names)

    def alike(name: str) -> bool:
        return ledger.unchanged(name) if known else name in there and ledger.alike(name, there[name])

    def copy(name: str, tick: Tick) -> None:
        before = state_of(folder / name)  # it may grow meanwhile
        ledger.keep(name, bucket.upload(folder / name, (to / name).key, tick), before)

    def remove(name: str) -> None:
        bucket.delete([(to / name).key])

    return _Copying(here, alike, copy, remove, listener, workers).run(set(there) if delete else set(), set(there))


def download(bucket: Bucket, source: Location, folder: Path, listener: Listener, *, delete: bool = False,
             forget: bool = False, workers: int = 8, names: Collection[str] | None = None) -> Synced:  # fmt: skip
    """Make a folder as a location is; arguments and errors as `upload`.

    `forget` removes files that were as an object which is there no more, and nothing else.
    """
    ledger = Ledger(folder, source)
    there = _entries(bucket, source, names)
    for name in there:
        _require_inside(name, source)

    def copy(name: str, tick: Tick) -> None:
        entry = bucket.download((source / name).key, folder / name, tick)
        ledger.keep(name, entry, state_of(folder / name))

    def remove(name: str) -> None:
        (folder / name).unlink(missing_ok=True)

    here = set(_of(names, files_below(folder)))
    sizes = {name: one.size for name, one in there.items()}
    return _Copying(sizes, lambda name: ledger.alike(name, there[name]), copy, remove, listener, workers).run(
        here if delete else {name for name in here if forget and ledger.unchanged(name)}, here
    )


def _entries(bucket: Bucket, location: Location, names: Collection[str] | None) -> dict[str, Entry]:
    """What is below a location, without our own notes; of a few names only these are asked for."""
    if names is None:
        every = bucket.list(location.key)
        return {name: entry for name, entry in every.items() if not _own(name.rpartition("/")[2])}
    return {name: entry for name in names if (entry := bucket.find((location / name).key)) is not None}


def _of(names: Collection[str] | None, found: Iterable[str]) -> list[str]:
    return [name for name in found if names is None or name in names]


def files_below(folder: Path) -> Iterator[str]:
    """The names of all files in a folder and below, links to files among them, without our own notes and parts.

    Raises:
        StorageError: Something there can be no object: a link to a folder, or no regular file.
    """
    for parent, folders, names in os.walk(folder):
        if link := next((path for name in folders if (path := Path(parent) / name).is_symlink()), None):
            raise StorageError(f"{link}: is a link to a folder, which no object can be; put the folder there")
        for name in names:
            if not _own(name):
                path = Path(parent) / name
                try:
                    require_regular(path)
                except OSError as error:
                    raise StorageError(f"{path}: {error.strerror}; remove it, or mend what it points to") from None
                yield path.relative_to(folder).as_posix()


@dataclass
class _Copying:
    """Of files that differ from one side to the other."""

    sizes: Mapping[str, int]
    """Of all that the source has."""
    alike: Callable[[str], bool]
    copy: Callable[[str, Tick], None]
    remove: Callable[[str], None]
    listener: Listener
    workers: int
    done: int = 0
    """Bytes."""
    files: int = 0
    lock: Lock = field(default_factory=Lock)

    def run(self, deletable: set[str], present: set[str]) -> Synced:
        """Copy, then remove what is `deletable` and not of the source; `present` is what the other side has."""
        with ThreadPoolExecutor(self.workers, thread_name_prefix="sync") as pool:
            names = list(self.sizes)
            differing = [name for name, same in zip(names, pool.map(self.alike, names), strict=True) if not same]
            total = sum(self.sizes[name] for name in differing)
            self.listener.begin(STAGE, -(-total // MEGABYTE))
            said = f"of {len(differing)} files"
            for name in filter(_is_mark, differing):
                if name in present:
                    self.remove(name)
            for group in _in_order(differing):
                self._together(pool, group, said)
            extra = sorted(deletable - set(names), key=_last)
            for name in reversed(extra):  # what names others goes before them
                self.remove(name)
        self.listener.end(STAGE)
        return Synced(copied=len(differing), bytes=total, same=len(names) - len(differing), deleted=len(extra))

    def _together(self, pool: ThreadPoolExecutor, names: list[str], said: str) -> None:
        futures = [pool.submit(self._one, name, said) for name in names]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()

    def _one(self, name: str, said: str) -> None:
        def tick(count: int, files: int = 0) -> None:
            with self.lock:
                self.done += count
                self.files += files
                self.listener.advance(self.done // MEGABYTE, f"MiB, {self.files} {said}")

        self.copy(name, tick)
        tick(0, 1)


def _in_order(names: list[str]) -> list[list[str]]:
    return [group for rank in range(3) if (group := [name for name in names if _last(name) == rank])]


def _last(name: str) -> int:
    """0 for what others say is there, 1 and 2 for those that say so."""
    base = name.rpartition("/")[2]
    return 2 if base in POINTERS else int(_is_mark(name))


def _is_mark(name: str) -> bool:
    return any(fnmatchcase(name.rpartition("/")[2], mark) for mark in MARKS)


def _own(name: str) -> bool:
    return name.startswith(NAME) or (name.startswith(".") and name.endswith((".part", ".lock")))


def _require_inside(name: str, source: Location) -> None:
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise StorageError(f"{source / name}: its key leads out of the folder; rename the object")
