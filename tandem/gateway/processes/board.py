"""Numbers that all processes of one gateway see: a shared memory with a row for each of them.

    names   one digest for each slot, 0 where it is free
    users   slots x rows bytes: which process uses a slot
    cells   slots x (rows + 1) doubles: what each process counts, then a number that they have in common

A process writes its own row alone, so counting needs no lock; a double is written and read whole. What a process that
was killed has counted, its successor's row does not: `clear`. Numbers in common are changed by one process at a time,
inside `changing`; what dies in there has changed a part of them, which no reader may mind.

A name is in use for as long as some process holds its counter or number; then its slot may become another one's.

A gateway of one process has a board, too, without any of this.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from tempfile import TemporaryFile
from typing import Final, TypeAlias
from weakref import WeakValueDictionary, finalize

from tandem.errors import ProcessError

SLOTS: Final = 2**16
"""Some thousand instances and keys at a time; untouched memory costs nothing."""
REACH: Final = 128
"""So far from where its digest points a name may stand."""
PATIENCE_S: Final = 0.1
"""A process that holds the lock for longer was stopped in there, and is not waited for."""


Cells: TypeAlias = "memoryview[float] | list[float]"
"""Shared, or of one process."""


class Counter:
    """What each process counts, and all of them together."""

    __slots__ = ("__weakref__", "_cells", "_row")

    def __init__(self, cells: Cells, row: int) -> None:
        self._cells = cells
        self._row = row

    def add(self, by: float = 1.0) -> None:
        """Count something of this process's own."""
        self._cells[self._row] += by

    @property
    def own(self) -> float:
        """This process's part."""
        return self._cells[self._row]

    @property
    def total(self) -> float:
        """Of all processes that live."""
        return sum(self._cells)

    @property
    def share(self) -> float:
        """Of each process, if all had the same."""
        return sum(self._cells) / len(self._cells)


class Common:
    """One number for all processes; 0 at first, and it outlives them."""

    __slots__ = ("__weakref__", "_cell")

    def __init__(self, cell: Cells) -> None:
        self._cell = cell

    @property
    def value(self) -> float:
        """As it was last written; write it inside `Board.changing`."""
        return self._cell[0]

    @value.setter
    def value(self, value: float) -> None:
        self._cell[0] = value


class Board:
    """All numbers of a gateway.

    Args:
        rows: How many processes there are.
        row: Which of them this one is; for a supervisor, which counts nothing, any.
        descriptor: A memory from `shared_memory` of so many rows; None for the only process.
    """

    def __init__(self, rows: int = 1, row: int = 0, descriptor: int | None = None) -> None:
        self._rows, self._row, self._descriptor = rows, row, descriptor
        memory = memoryview(b"" if descriptor is None else mmap.mmap(descriptor, size(rows)))
        users = 8 * SLOTS
        cells = users + rows * SLOTS
        self._names = memory[:users].cast("Q")
        self._users = memory[users:cells]
        self._cells = memory[cells:].cast("d")
        self._counters = WeakValueDictionary[str, Counter]()
        self._commons = WeakValueDictionary[str, Common]()

    def counter(self, name: str) -> Counter:
        """The counter of a name, the same in every process.

        Raises:
            ProcessError: There are more names than a board has room for.
        """
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters[name] = self._new_counter(name)
        return counter

    def common(self, name: str) -> Common:
        """The number in common of a name.

        Raises:
            ProcessError: There are more names than a board has room for.
        """
        common = self._commons.get(name)
        if common is None:
            common = self._commons[name] = self._new_common(name)
        return common

    def clear(self, row: int) -> None:
        """Take out all that a process counted, and its names; it must have ended."""
        self._cells[row :: self._rows + 1] = memoryview(bytes(8 * SLOTS)).cast("d")
        self._users[row :: self._rows] = bytes(SLOTS)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep other processes out of such blocks; to be left within microseconds, without an `await`, not nested."""
        if self._descriptor is None:
            yield
            return
        taken = self._take()
        try:
            yield
        finally:
            if taken:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _take(self) -> bool:
        """The kernel gives back what a process that dies has taken."""
        assert self._descriptor is not None
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() > until:
                    return False
                time.sleep(0)
            else:
                return True

    def _new_counter(self, name: str) -> Counter:
        if self._descriptor is None:
            return Counter([0.0], 0)
        slot = self._claim(f"counter {name}")
        at = slot * (self._rows + 1)
        counter = Counter(self._cells[at : at + self._rows], self._row)
        finalize(counter, self._give_up, slot).atexit = False
        return counter

    def _new_common(self, name: str) -> Common:
        if self._descriptor is None:
            return Common([0.0])
        slot = self._claim(f"common {name}")
        at = slot * (self._rows + 1) + self._rows
        common = Common(self._cells[at : at + 1])
        finalize(common, self._give_up, slot).atexit = False
        return common

    def _claim(self, name: str) -> int:
        with self.changing():
            slot = self._find(digest_of(name))
            self._users[slot * self._rows + self._row] = 1
        return slot

    def _find(self, digest: int) -> int:
        """Where the digest stands, or else the first place that nobody uses; nothing stands behind a free one."""
        unused = None
        for slot in ((digest + step) % SLOTS for step in range(REACH)):
            if self._names[slot] == digest:
                return slot
            if unused is None and not any(self._users[slot * self._rows : (slot + 1) * self._rows]):
                unused = slot
            if not self._names[slot]:
                break
        if unused is None:
            raise ProcessError(f"gateway: more than {SLOTS} names of instances and keys; start it again")
        for cell in range(unused * (self._rows + 1), (unused + 1) * (self._rows + 1)):
            self._cells[cell] = 0.0
        self._names[unused] = digest
        return unused

    def _give_up(self, slot: int) -> None:
        self._cells[slot * (self._rows + 1) + self._row] = 0.0
        self._users[slot * self._rows + self._row] = 0


def shared_memory(rows: int) -> int:
    """The descriptor of a new memory for a board, to be inherited by its processes; it ends with them."""
    descriptor = os.memfd_create("tandem-gateway") if hasattr(os, "memfd_create") else _unnamed_file()
    os.ftruncate(descriptor, size(rows))
    return descriptor


def size(rows: int) -> int:
    """Bytes of a board."""
    return SLOTS * (8 + rows + 8 * (rows + 1))


def digest_of(name: str) -> int:
    """Of a name; never 0."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) or 1


def _unnamed_file() -> int:
    with TemporaryFile() as file:
        return os.dup(file.fileno())
