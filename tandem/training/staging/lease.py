"""`Lease`: one run at a time has a place on a store, whichever machine it is on.

    <location>/.in_use.lock    who has it, under a name drawn for this run, and when that was written
    <folder>/.in_use.lock      the same on this machine

A store knows no processes, so an owner that is killed leaves its lease there. A living one writes it again every few
seconds: whoever comes watches it, is refused if it changes, and takes it over if it does not. No clocks are compared.
What this machine's own folder knows is taken over at once: `alone_at` keeps the folder, so that owner is gone.

It is taken by conditional puts, so one of two that come together gets it. A store without them keeps what was written
last, and the other one finds that out when it writes its own again.

Of several hosts the first one has it. The others look whether it still does before they send anything (`Followed`).
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Final

from tandem.errors import StorageError
from tandem.files import json_bytes, write_whole
from tandem.storage.bucket import Bucket
from tandem.storage.location import Location

NAME: Final = ".in_use.lock"
RENEW_S: Final = 10.0
STALE_S: Final = 40.0
"""Without a word of the owner, until it is taken to be gone."""
LOOK_S: Final = 1.0


class Lease(AbstractContextManager["Lease"]):
    """Is held as long as the block lasts.

    Args:
        bucket: Where the location is.
        location: The place.
        folder: Its folder on this machine, in which nobody else is at work.
        note: Is told who is waited for.
    """

    def __init__(self, bucket: Bucket, location: Location, folder: Path, note: Callable[[str], None]) -> None:
        self._bucket, self._location, self._note = bucket, location, note
        self._key, self._own = (location / NAME).key, folder / NAME
        self._name = secrets.token_hex(8)
        self._content: bytes | None = None
        self._renewed = 0.0
        self._taken_by = ""
        self._ended = Event()
        self._thread = Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take it; this may take `STALE_S`.

        Raises:
            StorageError: Another run has it, or the store refuses.
        """
        before, mine = self._left_behind(), self._written()
        write_whole(self._own, mine)
        self._renewed = time.monotonic()
        if not self._bucket.swap(self._key, before, mine) and not self._is_mine(there := self._there()):
            raise self._unable() if there == before else self._refusal(there)
        if self._bucket.unconditional:
            self._note(
                f"{self._location}: the store takes no conditional puts (it answers 501), so of two runs that begin at "
                f"the same moment both have this place for up to {RENEW_S:.0f} seconds; start one after the other"
            )
        self._content = mine
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back; where the store cannot be reached, it is found to be left behind."""
        self._ended.set()
        self._thread.join()
        with suppress(StorageError):
            if self._is_mine(self._there()):
                self._bucket.delete([self._key])

    def holder(self) -> str | None:
        """Who has it, or has left it behind, and since when; None for nobody.

        Raises:
            StorageError: The store refuses.
        """
        return _holder(self._there())

    def require(self) -> None:
        """See that it is still held.

        Raises:
            StorageError: It is not, or that is not known.
        """
        if self._taken_by:
            raise _taken_over(self._location, self._taken_by)
        if time.monotonic() - self._renewed > STALE_S:
            raise StorageError(f"{self._location}: cannot be kept, since the store does not answer; check the network")

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S) and not self._taken_by:
            with suppress(StorageError):  # an outage: `require` tells when it has lasted too long
                self._renew()

    def _renew(self) -> None:
        began, mine = time.monotonic(), self._written()
        if self._bucket.swap(self._key, self._content, mine):
            self._content, self._renewed = mine, began
            return
        self._content = self._there()
        if self._content is not None and not self._is_mine(self._content):
            self._taken_by = _owner(self._content)

    def _left_behind(self) -> bytes | None:
        """What the store has of an owner that is gone."""
        seen = self._there()
        known = self._own.read_bytes() if self._own.exists() else b""
        if seen is None or _fields(seen).get("name") == _fields(known).get("name"):
            return seen
        self._note(
            f"{self._location}: {_owner(seen)} was there last and did not say that it has ended; waiting up to "
            f"{STALE_S:.0f} seconds for a sign of it"
        )
        deadline = time.monotonic() + STALE_S
        while time.monotonic() < deadline:
            time.sleep(LOOK_S)
            if (now := self._there()) != seen:
                if now is not None:
                    raise self._refusal(now)
                return None
        return seen

    def _refusal(self, there: bytes | None) -> StorageError:
        return StorageError(
            f"{self._location}: another run ({_owner(there)}) is at work there; wait for it, end it, or give this one "
            "another place (OUTPUT_SAVE_DIR, --out)"
        )

    def _unable(self) -> StorageError:
        return StorageError(
            f"{self._location}: cannot be kept for one run, since the store answers that a condition is not met "
            "(If-None-Match, If-Match; 409 or 412) where it is; use a place on a store that has conditional puts, or a "
            "folder"
        )

    def _there(self) -> bytes | None:
        return self._bucket.read(self._key)

    def _is_mine(self, content: bytes | None) -> bool:
        return content is not None and _fields(content).get("name") == self._name

    def _written(self) -> bytes:
        owner = f"{os.uname().nodename}, pid {os.getpid()}"
        return json_bytes({"name": self._name, "owner": owner, "time": datetime.now(UTC).isoformat()})


class Followed:
    """The lease of a run's first host, as another host of the same run sees it.

    Args:
        bucket: Where the location is.
        location: The place.
    """

    def __init__(self, bucket: Bucket, location: Location) -> None:
        self._bucket, self._location = bucket, location
        self._name: str | None = None
        self._looked = 0.0

    def holder(self) -> str | None:
        """As `Lease.holder`: the first host of this run, or of another one."""
        return _holder(self._bucket.read((self._location / NAME).key))

    def require(self) -> None:
        """See that the first host still has it; to be called once it does, and at most `RENEW_S` behind.

        Raises:
            StorageError: Another run has it, or the store refuses.
        """
        if self._name is not None and time.monotonic() - self._looked < RENEW_S:
            return
        looked, there = time.monotonic(), self._bucket.read((self._location / NAME).key)
        if there is None:  # given back at the run's end, and nobody else came
            return
        self._name = self._name or _fields(there).get("name")
        if _fields(there).get("name") != self._name:
            raise _taken_over(self._location, _owner(there))
        self._looked = looked


def _taken_over(location: Location, by: str) -> StorageError:
    return StorageError(
        f"{location}: {by} has taken it over, as nothing was heard of this run for {STALE_S:.0f} seconds; end one of "
        "the two, and start the other again"
    )


def _fields(content: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        fields = json.loads(content)
        return fields if isinstance(fields, dict) else {}
    return {}


def _holder(content: bytes | None) -> str | None:
    return None if content is None else _owner(content)


def _owner(content: bytes | None) -> str:
    fields = _fields(content or b"")
    return f"{fields.get('owner', 'unknown')}, at {fields.get('time', 'an unknown time')}"
