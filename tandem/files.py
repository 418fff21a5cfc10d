"""Files that are either whole or not there, and files and JSON objects read with one clear error.

Everything is written beside its final name and renamed, so a kill at any moment leaves the old state or the new one.
A rename puts a file in the place of whatever is there, so what is no regular file is refused before, and links are
followed.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tandem.errors import TandemError

LARGEST_JSON = 1 << 28
"""Bytes. The largest that models have, indices and vocabularies, take some tens of megabytes."""

FIXES = {  # of a file that could not be opened
    errno.ENOENT: "check its name",
    errno.ENOTDIR: "check its name",
    errno.EACCES: "let this user read it",
}

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk, a user's share of it, or what one file may have."""


class NotRegularError(OSError):
    """What bears a name is no regular file: a folder, a pipe, a socket, a device."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "is not a regular file", str(path))


def there(path: Path) -> bool:
    """Whether something has this name; a link to nowhere counts, so that reading it says what is wrong."""
    return os.path.lexists(path)


def require_regular(path: Path) -> None:
    """Refuse what can be read for ever, or never answers: pipes, devices.

    Raises:
        NotRegularError: It is no regular file, nor a link to one.
        OSError: It is not there, or cannot be looked at.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotRegularError(path)


def read_bytes(path: Path, error: type[TandemError], most: int = -1) -> bytes:
    """What is in `path`; of a larger file the first `most` bytes, unless that is negative.

    Raises:
        TandemError: Of the class `error`: the file cannot be read.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            return file.read(most)
    except OSError as reason:
        fix = FIXES.get(reason.errno or 0, "copy the file again")
        raise error(f"{path}: cannot be read ({reason.strerror}); {fix}") from None


def read_json_object(path: Path, error: type[TandemError]) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        TandemError: Of the class `error`: the file cannot be read or holds something else.
    """
    content = read_bytes(path, error, LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise error(f"{path}: has more than {LARGEST_JSON} bytes, which no such file has; copy the file again")
    try:
        fields = json.loads(content.decode())
    except (ValueError, RecursionError) as reason:
        raise error(f"{path}: cannot be read as JSON ({reason}); copy or write the file again") from None
    if not isinstance(fields, dict):
        raise error(f"{path}: holds no JSON object; copy or write the file again")
    return fields


def json_bytes(fields: dict[str, Any]) -> bytes:
    """A JSON object as people like to read it; half a surrogate pair, as in a name that is no UTF-8, is escaped."""
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step, on disk before it bears the name.

    A link stays, and the file that it points to is replaced, or created.

    Raises:
        NotRegularError: Something else than a regular file is there.
        OSError: The folder or the file cannot be written.
    """
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that gets its name when the block ends well, and vanishes when it does not; as `write_whole`."""
    path = _followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    _remove_orphans(path)
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno in FULL:  # the system does not say where
            error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def _followed(path: Path) -> Path:
    """Where a regular file may be put by the name `path`: there, or where a link of that name ends."""
    with suppress(FileNotFoundError, NotADirectoryError):  # nothing is there, or a link to nowhere
        require_regular(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that gets its final name when the block ends well, and vanishes when it does not.

    `path` must not exist; an empty folder there is replaced.
    """
    part = _part(path)
    _remove_orphans(path)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _sync(file)
        part.rename(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno in FULL:
            error.filename = error.filename or str(path)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")


def _remove_orphans(path: Path) -> None:
    """Remove what processes of this host left that were killed before they could."""
    if not path.parent.is_dir():
        return
    start = f".{path.name}.{platform.node()}."
    with os.scandir(path.parent) as entries:
        parts = [Path(entry) for entry in entries if entry.name.startswith(start) and entry.name.endswith(".part")]
    for part in parts:
        number = part.name.split(".")[-2]
        if number.isdecimal() and (int(number) == os.getpid() or not _runs(int(number))):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's, or no process number at all
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
