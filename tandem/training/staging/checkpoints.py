"""`StoredCheckpoints`: a run's checkpoints on an object store, so that a kill at any moment leaves one to go on from.

    <location>/latest_checkpointed_iteration.txt    the step to go on from; sent last
    <location>/iter_0000200/...                     as `checkpoints/store.py` writes it

    <folder>/.sending/iter_0000200/    hard links to what is being sent, which outlive the run's own pruning
    <folder>/.fetching/iter_0000200/   what is being fetched; gets its place when it is whole
    <folder>/.on_store.json            what the store and this folder last agreed on

A run on one host goes on from its folder while the store says what this folder told it: then what lies here is as far
or further. Where somebody else has told it something, or there is nothing here, the store decides. Of several hosts
each holds and sends its own parts; the first one names a checkpoint when all are there, and the store always decides.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tandem.errors import CheckpointError, StorageError
from tandem.files import json_bytes, read_json_object, write_whole
from tandem.storage.bucket import DIGEST, Bucket
from tandem.storage.copying import Listener, download
from tandem.storage.location import Location
from tandem.training.checkpoints.state import LATEST, STATE

WAIT_S: Final = 300.0
"""For the parts of other hosts, while there is a newer checkpoint to try."""
LOOK_S: Final = 1.0
RECORD: Final = ".on_store.json"
FOLDER: Final = re.compile(r"iter_([0-9]{7,15})")


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Who sends."""

    count: int
    rank: int


class StoredCheckpoints:
    """The checkpoints of one run, on one host.

    Args:
        folder: The run's own, on this machine.
        bucket: Where the location is.
        location: Of the checkpoints.
        hosts: Which of them this is.
        keep_last: Older ones than this many are removed from the store, once a new one is named there.
        require: Raises where the place is another run's by now; called before anything is put there.
    """

    def __init__(
        self,
        folder: Path,
        bucket: Bucket,
        location: Location,
        hosts: Hosts,
        keep_last: int,
        require: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._bucket, self._location = folder, bucket, location
        self._hosts, self._keep_last, self._require = hosts, keep_last, require
        self._sent: set[tuple[str, int]] = set()

    def take_in(self, listener: Listener, note: Callable[[str], None]) -> bool:
        """Make the folder ready to go on from; returns whether the store decided.

        Raises:
            StorageError: The store refuses, or its pointer holds no step.
        """
        shutil.rmtree(self._folder / ".sending", ignore_errors=True)
        step = self._named()
        ours = self._is_ours(step)
        if not ours:
            self._replace(step, listener, note)
        elif step is None:
            self._agree([None], None)  # whatever it had, it is to be sent again
        self._sent = {self._mark_of(path) for path in self._iterations()}
        return not ours

    def away(self) -> int | None:
        """The step that the store names and that is yet to be fetched, if there is one; nothing is changed.

        Raises:
            StorageError: As `take_in`.
        """
        step = self._named()
        return None if self._is_ours(step) else step

    def clear(self) -> None:
        """Remove all checkpoints from the store, the pointer first."""
        keys = sorted(self._keys(), key=lambda key: not key.endswith(LATEST))
        self._bucket.delete(keys)
        self._agree([None], None)

    def send(self, hurry: Callable[[], bool], ahead: Callable[[], None]) -> bool:
        """Send what is new here, in order; returns whether there was something.

        Args:
            hurry: Whether the run has ended, so that nothing newer will come.
            ahead: Sends what a run that goes on from a checkpoint wants to find, before the checkpoint is named: logs.

        Raises:
            StorageError: The store refuses, the place is another run's, or the parts of other hosts do not come.
        """
        new = self._latest_unsent() if self._hosts.rank == 0 else self._next_parts()
        if new is None:
            return False
        linked = self._link(new)
        if linked is None:  # pruned meanwhile: there is a newer one
            return True
        try:
            self._send(linked, hurry, ahead)
        finally:
            shutil.rmtree(linked, ignore_errors=True)
        self._sent.add(self._mark_of(new)) if new.exists() else None
        return True

    def _is_ours(self, step: int | None) -> bool:
        """Whether what is here decides, where the store names a step."""
        here = step in self._agreed()["named"] and (self._folder / LATEST).exists()
        return self._hosts.count == 1 and (step is None or here)

    def _send(self, folder: Path, hurry: Callable[[], bool], ahead: Callable[[], None]) -> None:
        step = _step_of(folder)
        self._require()
        if self._hosts.rank == 0:
            self._spare(step, folder)
        for path in sorted(folder.iterdir()):
            self._send_part(path, self._key(folder.name, path.name))
        if self._hosts.rank == 0 and self._whole(folder, step, hurry):
            ahead()
            self._require()
            before = self._agreed()["named"][-1]
            self._agree([before, step], None)  # a kill before the next line leaves one of the two there
            self._bucket.write(self._key(LATEST), f"{step}\n".encode())
            self._agree([step], _digest(folder / STATE))
            self._prune(step)

    def _send_part(self, path: Path, key: str) -> None:
        digest = _digest(path)
        self._require()
        if self._bucket.digest(key) != digest:  # there already, where an earlier try was broken off
            self._bucket.upload(path, key, lambda count: None, digest)

    def _spare(self, step: int, folder: Path) -> None:
        """Before a step is written over that the store names, name an older one there, if there is one."""
        key = self._key(folder.name, STATE)
        if self._named() != step or self._bucket.digest(key) == _digest(folder / STATE):
            return
        if older := [known for known in self._stored_steps() if known < step]:
            self._bucket.write(self._key(LATEST), f"{older[-1]}\n".encode())
            self._agree([older[-1]], None)

    def _whole(self, folder: Path, step: int, hurry: Callable[[], bool]) -> bool:
        """Whether the parts of all hosts are there; waits for them, until a newer checkpoint is the better try."""
        wanted = read_json_object(folder / STATE, CheckpointError)["sha256"]
        deadline = time.monotonic() + WAIT_S
        while True:
            missing = [name for name, digest in wanted.items() if self._stored(folder, name) != digest]
            if not missing:
                return True
            if time.monotonic() > deadline:
                if hurry():
                    at = self._location / folder.name
                    raise StorageError(
                        f"{at}: {', '.join(missing)} did not come from the other hosts; see their logs, and start the "
                        "run again on all of them"
                    )
                if self._latest_step() != step:
                    return False
            time.sleep(LOOK_S)

    def _stored(self, folder: Path, name: str) -> str | None:
        return self._bucket.digest(self._key(folder.name, name))

    def _replace(self, step: int | None, listener: Listener, note: Callable[[str], None]) -> None:
        """Let the folder hold what the store names, and no other."""
        kept = f"iter_{step:07d}" if step is not None else ""
        (self._folder / LATEST).unlink(missing_ok=True)
        for path in self._iterations():
            if path.name != kept or not self._is_stored(path):
                shutil.rmtree(path)
        if step is not None:
            if not (self._folder / kept).exists():
                note(f"{self._location / kept} is fetched to go on from")
                self._fetch(kept, listener)
            write_whole(self._folder / LATEST, f"{step}\n".encode())
            self._agree([step], _digest(self._folder / kept / STATE))
        else:
            self._agree([None], None)

    def _fetch(self, name: str, listener: Listener) -> None:
        part = self._folder / ".fetching" / name
        download(self._bucket, self._location / name, part, listener)
        if not (part / STATE).exists():
            raise StorageError(
                f"{self._location / name}: is missing or not whole, though {LATEST} there names it; write an older "
                "step into it, or train anew with --fresh"
            )
        part.rename(self._folder / name)

    def _is_stored(self, path: Path) -> bool:
        """Whether a whole checkpoint here is the store's."""
        if not (path / STATE).exists():
            return False
        parts = read_json_object(path / STATE, CheckpointError)["sha256"]
        whole = all((path / name).exists() for name in parts)
        return whole and self._stored(path, STATE) == _digest(path / STATE)

    def _latest_unsent(self) -> Path | None:
        step = self._latest_step()
        if step is None:
            return None
        path = self._folder / f"iter_{step:07d}"
        try:
            return None if _digest(path / STATE) == self._agreed()["sent"] else path
        except FileNotFoundError:  # pruned meanwhile
            return None

    def _next_parts(self) -> Path | None:
        return next((path for path in self._iterations() if self._mark_of(path) not in self._sent), None)

    def _latest_step(self) -> int | None:
        path = self._folder / LATEST
        return int(path.read_text()) if path.exists() else None

    def _link(self, folder: Path) -> Path | None:
        linked = self._folder / ".sending" / folder.name
        shutil.rmtree(linked, ignore_errors=True)
        linked.mkdir(parents=True)
        try:
            for path in folder.glob("[!.]*"):
                os.link(path, linked / path.name)
        except FileNotFoundError:
            shutil.rmtree(linked)
            return None
        except OSError as error:
            raise StorageError(
                f"{folder}: cannot be linked ({error.strerror}); let TANDEM_STORE_CACHE be where hard links can be"
            ) from None
        return linked

    def _prune(self, newest: int) -> None:
        kept = [step for step in self._stored_steps() if step <= newest][-self._keep_last :]
        self._bucket.delete(
            [key for key in self._keys() if (step := self._step_in(key)) is not None and step not in kept]
        )

    def _stored_steps(self) -> list[int]:
        return sorted({step for key in self._keys() if (step := self._step_in(key)) is not None})

    def _step_in(self, key: str) -> int | None:
        match = FOLDER.fullmatch(key.removeprefix(self._key("")).partition("/")[0])
        return int(match[1]) if match else None

    def _keys(self) -> list[str]:
        """Of the pointer and all checkpoints."""
        names = self._bucket.list(self._location.key)
        return [self._key(name) for name in names if name == LATEST or FOLDER.fullmatch(name.partition("/")[0])]

    def _key(self, *names: str) -> str:
        return (self._location / "/".join(names)).key

    def _named(self) -> int | None:
        content = self._bucket.read(self._key(LATEST))
        if content is None:
            return None
        if not re.fullmatch(rb"[0-9]{1,15}", content.strip()):
            raise StorageError(f"{self._location / LATEST}: holds no step; write one of {self._stored_steps()} into it")
        return int(content)

    def _agreed(self) -> dict[str, Any]:
        path = self._folder / RECORD
        return read_json_object(path, StorageError) if path.exists() else {"named": [None], "sent": None}

    def _agree(self, named: list[int | None], sent: str | None) -> None:
        write_whole(self._folder / RECORD, json_bytes({"named": named, "sent": sent}))

    def _iterations(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("iter_*") if FOLDER.fullmatch(path.name))

    def _mark_of(self, path: Path) -> tuple[str, int]:
        return path.name, path.stat().st_ino


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("iter_"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, DIGEST).hexdigest()
