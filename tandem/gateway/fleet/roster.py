"""Who shall serve: the list of workers at one epoch. It never changes; every verb makes the next one.

A roster is all there is to a change: whoever adopts the one with the greatest epoch is up to date, whatever it missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import count
from typing import Annotated

import msgspec
from msgspec import Meta

from tandem.errors import RequestError, UsageError
from tandem.gateway.wire.worker import Worker, base_url
from tandem.protocol.identity import Role

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A worker as an operator writes it."""

    role: Role
    url: str
    name: Name | None = None
    """The next free one of its role where none is given."""
    draining: bool = False


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole list as an operator wants it."""

    epoch: int
    """Of the list that it was made from."""
    workers: tuple[Entry, ...]


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """The workers of an epoch, no name and no address twice, and at least one of them not draining."""

    workers: tuple[Worker, ...]
    draining: frozenset[str] = frozenset()
    """Names of those who get no further requests."""
    hurried: frozenset[str] = frozenset()
    """Names of those whose requests are not waited for when they leave with this change, or have left before."""
    epoch: int = 1
    file_epoch: int = 0
    """The one that the topology file had when it was read last."""

    def find(self, name: str) -> Worker:
        """The worker of a name.

        Raises:
            RequestError: 404, there is none.
        """
        for worker in self.workers:
            if worker.name == name:
                return worker
        names = ", ".join(worker.name for worker in self.workers)
        raise RequestError(f"{name}: no worker has this name; there are {names}", status=404, code="unknown_worker")

    def added(self, entry: Entry, taken: Collection[str] = ()) -> Roster:
        """With one more.

        Args:
            entry: Who.
            taken: Names that are given to nobody, because those who left still bear them.

        Raises:
            RequestError: 400 or 409, when it cannot be.
        """
        (worker,) = _named([entry], self.workers, taken)
        return self._next((*self.workers, worker), self.draining | ({worker.name} if entry.draining else set()))

    def drained(self, name: str) -> Roster:
        """With a worker that gets no further requests.

        Raises:
            RequestError: 404, or 409 when nobody would be left.
        """
        self.find(name)
        return self._next(self.workers, self.draining | {name})

    def undrained(self, name: str) -> Roster:
        """With a worker that gets requests again.

        Raises:
            RequestError: 404.
        """
        self.find(name)
        return self._next(self.workers, self.draining - {name})

    def removed(self, name: str, *, now: bool = False, leaving: Collection[str] = ()) -> Roster:
        """Without a worker.

        Args:
            name: Who.
            now: Whether what it has is not waited for.
            leaving: Names of those who have left and are waited for; `now` ends that.

        Raises:
            RequestError: 404, or 409 when nobody would be left.
        """
        hurried = frozenset([name]) if now else frozenset[str]()
        if not (now and name in leaving):
            self.find(name)
        rest = tuple(worker for worker in self.workers if worker.name != name)
        return self._next(rest, self.draining - {name}, hurried=hurried)

    def replaced(self, wanted: Wanted, taken: Collection[str] = ()) -> Roster:
        """With the whole list that somebody made from this one; this one where it says the same.

        Raises:
            RequestError: 409, it was made from another one; 400, it cannot be.
        """
        if wanted.epoch != self.epoch:
            raise RequestError(
                f"epoch: the list was made from epoch {wanted.epoch}, and now it is {self.epoch}; read it again, and "
                "make yours from that",
                status=409,
                code="stale_epoch",
                param="epoch",
            )
        workers = _named(wanted.workers, (), taken)
        draining = {worker.name for worker, entry in zip(workers, wanted.workers, strict=True) if entry.draining}
        return self._next(workers, draining)

    def as_a_file_says(self, workers: tuple[Worker, ...], epoch: int) -> Roster:
        """With the workers of a topology file, whose epoch is another count than ours: that of its writer.

        Raises:
            RequestError: 409, it is not newer than the one that was read before; 400, it cannot be.
        """
        if epoch == self.file_epoch and set(workers) == set(self.workers):
            return self
        if epoch <= self.file_epoch:
            raise RequestError(
                f"its epoch is {epoch}, and that of the one in use {self.file_epoch}; write a greater one with every "
                "change",
                status=409,
                code="stale_epoch",
            )
        names = {worker.name for worker in workers}
        return self._next(workers, self.draining & names, file_epoch=epoch, epoch=max(self.epoch + 1, epoch))

    def _next(
        self,
        workers: tuple[Worker, ...],
        draining: Collection[str],
        *,
        hurried: frozenset[str] = frozenset(),
        epoch: int | None = None,
        file_epoch: int | None = None,
    ) -> Roster:
        """The next epoch; this one where nothing changes."""
        made = Roster(
            workers=workers,
            draining=frozenset(draining),
            hurried=hurried,
            epoch=self.epoch + 1 if epoch is None else epoch,
            file_epoch=self.file_epoch if file_epoch is None else file_epoch,
        )
        if (workers, made.draining, made.file_epoch) == (self.workers, self.draining, self.file_epoch) and not hurried:
            return self
        made.require_sound()
        return made

    def require_sound(self) -> None:
        """Refuse what no roster can be.

        Raises:
            RequestError: 409, naming whom it is about.
        """
        for what in ("name", "url"):
            counts = Counter(getattr(worker, what) for worker in self.workers)
            if twice := next((value for value, count in counts.items() if count > 1), None):
                raise RequestError(
                    f"{what}: {twice} is there already; give each worker once, with a name and an address of its own",
                    status=409,
                    code="worker_exists",
                    param=what,
                )
        if all(worker.name in self.draining for worker in self.workers):
            raise RequestError(
                "nobody would be left to serve; add another worker, or take a drained one back, first",
                status=409,
                code="last_worker",
            )


def _named(entries: Collection[Entry], there: Collection[Worker], taken: Collection[str]) -> tuple[Worker, ...]:
    """Workers for entries, those without a name under the next free one of their role.

    Raises:
        RequestError: 400, an address is none.
    """
    names = {worker.name for worker in there} | {entry.name for entry in entries if entry.name} | set(taken)
    free = {part: _free(part, names) for part in ("prefill", "decode")}
    made = []
    for entry in entries:
        name = entry.name or next(free[_part(entry.role)])
        made.append(Worker(name=name, url=_address(entry.url), role=entry.role))
    return tuple(made)


def _free(part: str, taken: Collection[str]) -> Iterator[str]:
    """Names of a role that nobody has, each once."""
    return (name for n in count() if (name := f"{part}-{n}") not in taken)


def _part(role: Role) -> Role:
    """What a worker is called after: those who do both are counted as decode workers."""
    return "prefill" if role == "prefill" else "decode"


def _address(url: str) -> str:
    try:
        return base_url("url", url)
    except UsageError as error:
        raise RequestError(str(error), param="url") from None
