"""`Bucket`: the objects of one bucket, over obstore, with every failure said by place and fix.

Needs the extra `s3` (obstore), which signs, retries what failed on the way, and sends large objects in parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from tandem.errors import StorageError, UsageError
from tandem.files import whole_file
from tandem.storage.location import Location
from tandem.storage.settings import Settings, read_settings

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3Config

PART: Final = 32 << 20
"""Bytes of a part of a large object. An ETag depends on it, so a change makes large files be sent once more."""
MOST_PARTS: Final = 10_000
CHUNK: Final = 1 << 20
"""Bytes from one tick of a progress bar to the next."""
DIGEST: Final = "sha256"
"""Metadata of an object whose sender knew its content's SHA-256."""
ANSWER: Final = re.compile(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>")
NOT_THERE: Final = re.compile(r"\b404\b|not found|NoSuchKey", re.I)
NO_CONDITIONS: Final = re.compile(r"\b501\b|NotImplemented")
NOT_ALLOWED: Final = re.compile(r"\b40[13]\b|AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId|credential", re.I)

Tick = Callable[[int], None]
"""Is told of bytes that have passed."""


@dataclass(frozen=True)
class Entry:
    """One object, as the store lists it."""

    size: int
    etag: str
    """Of a small object its content's MD5, of a large one MD5 of its parts' and their number; or anything else."""


class Bucket:
    """A bucket of a store; may be used by several threads at once.

    Args:
        store: What obstore made of it.
        root: The bucket itself, for messages.
        address: Of the store, for messages.
    """

    def __init__(self, store: ObjectStore, root: Location, address: str) -> None:
        self._store, self._root, self._address = store, root, address
        self.unconditional = False
        """Whether the store has refused a condition, so that `swap` goes without."""

    @classmethod
    def connect(cls, location: Location, environment: Mapping[str, str], patience: float = 60.0) -> Bucket:
        """The bucket of a location; nothing is asked of it yet.

        Args:
            location: Any in it.
            environment: Process's environment variables (`settings.py`).
            patience: Seconds in which a request that failed on the way is tried again.

        Raises:
            UsageError: The extra is not installed, or something is not set.
        """
        try:
            from obstore.store import S3Store
        except ImportError:
            raise UsageError(f"{location}: needs obstore; run `pip install -e '.[s3]'` in tandem's folder") from None
        settings = read_settings(environment, location.scheme)
        address, virtual = _address(settings, location)
        config: S3Config = {"region": settings.region, "virtual_hosted_style_request": virtual}
        if address:
            config["endpoint"] = address
        if settings.keys:
            config |= {"access_key_id": settings.keys.id, "secret_access_key": settings.keys.secret}
        if settings.keys and settings.keys.token:
            config["session_token"] = settings.keys.token
        store = S3Store(
            location.bucket,
            config=config,
            client_options={
                "allow_http": (address or "").startswith("http:"),
                "connect_timeout": timedelta(seconds=10),
                "read_timeout": timedelta(minutes=2),
                "timeout": timedelta(days=1),
            },
            retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=patience)},
        )
        return cls(store, Location(location.scheme, location.bucket, ""), settings.endpoint or "AWS")

    def list(self, key: str) -> dict[str, Entry]:
        """All objects below a key, by the rest of their keys.

        Raises:
            StorageError: The store refuses, or cannot be reached.
        """
        import obstore

        start = f"{key}/" if key else ""
        with self._named(key):
            every = [one for page in obstore.list(self._store, key or None) for one in page]
        found = {
            one["path"].removeprefix(start): Entry(one["size"], _bare(one["e_tag"]))
            for one in every
            if one["path"].startswith(start)
        }
        # Consoles make folders as empty objects with a slash at the end.
        folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
        return {name: one for name, one in found.items() if one.size or name not in folders}

    def find(self, key: str) -> Entry | None:
        """The object of exactly this key, if there is one.

        Raises:
            StorageError: The store refuses, or cannot be reached.
        """
        import obstore

        with self._named(key):
            try:
                found = obstore.head(self._store, key)
            except FileNotFoundError:
                return None
        return Entry(found["size"], _bare(found["e_tag"]))

    def digest(self, key: str) -> str | None:
        """The SHA-256 that the object's sender told; None where there is no object, or none was told.

        Raises:
            StorageError: The store refuses, or cannot be reached.
        """
        import obstore

        with self._named(key):
            try:
                told = obstore.get(self._store, key, options={"head": True}).attributes
            except FileNotFoundError:
                return None
        return dict(told).get(DIGEST)

    def read(self, key: str) -> bytes | None:
        """A small object's content; None where there is no such object.

        Raises:
            StorageError: The store refuses, or cannot be reached.
        """
        import obstore

        with self._named(key):
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def write(self, key: str, content: bytes) -> None:
        """Put a small object in one step.

        Raises:
            StorageError: The store refuses, or cannot be reached.
        """
        import obstore

        with self._named(key):
            obstore.put(self._store, key, content)

    def swap(self, key: str, before: bytes | None, after: bytes) -> bool:
        """Put a small object where there still is what was there before; returns whether there was.

        A store that takes no conditions (it answers 501) gets it without: then the last one who writes wins, and
        `unconditional` says so.

        Args:
            key: Of the object.
            before: Its content; None where there was no object.
            after: The new content.

        Raises:
            StorageError: The store refuses, or cannot be reached.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        with self._named(key):
            try:
                there = None if before is None else obstore.get(self._store, key)
                if there is not None and bytes(there.bytes()) != before:
                    return False
                obstore.put(self._store, key, after, mode={"e_tag": there.meta["e_tag"]} if there else "create")
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return False
            except BaseError as error:
                if not NO_CONDITIONS.search(str(error)):
                    raise
                self.unconditional = True
                obstore.put(self._store, key, after)
        return True

    def download(self, key: str, path: Path, tick: Tick) -> Entry:
        """Put an object's content at `path`, whole or not at all; returns what was fetched.

        Raises:
            StorageError: There is no such object, it broke off, or the file cannot be written.
        """
        import obstore

        with self._named(key, path):
            answer = obstore.get(self._store, key)
            entry = Entry(answer.meta["size"], _bare(answer.meta["e_tag"]))
            with whole_file(path) as file:
                for chunk in answer.stream(CHUNK):
                    tick(file.write(chunk))
                if file.tell() != entry.size:
                    raise EOFError(f"{file.tell()} of {entry.size} bytes came")
        return entry

    def upload(self, path: Path, key: str, tick: Tick, digest: str | None = None) -> Entry:
        """Put a file's content into an object, whole or not at all; returns what is there then.

        Args:
            path: A regular file that does not change.
            key: Of the object.
            tick: Is told of bytes that are on their way.
            digest: The content's SHA-256, to be kept beside it.

        Raises:
            StorageError: The store refuses, or cannot be reached, or the file cannot be read.
        """
        import obstore

        size = path.stat().st_size
        if size > PART * MOST_PARTS:
            raise StorageError(f"{path}: has {size} bytes, and an object {PART * MOST_PARTS} at most; split the file")
        attributes = {DIGEST: digest} if digest else None
        with self._named(key, path):
            if size <= PART:
                content = path.read_bytes()
                size = len(content)
                done = obstore.put(self._store, key, content, attributes=attributes, use_multipart=False)
                tick(size)
            else:
                done = obstore.put(self._store, key, _chunks(path, tick), attributes=attributes, chunk_size=PART,
                                   max_concurrency=2)  # fmt: skip
        return Entry(size, _bare(done["e_tag"]))

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, in this order.

        Raises:
            StorageError: The store refuses, or cannot be reached.
        """
        import obstore

        for key in keys:
            with self._named(key):
                obstore.delete(self._store, key)

    @contextmanager
    def _named(self, key: str, path: Path | None = None) -> Iterator[None]:
        """Every failure by place and fix; obstore's own text ends where its debugging output begins."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, EOFError, ValueError) as error:
            said = _said(error)
            at = f" ({path})" if path else ""
            raise StorageError(f"{self._root / key}{at}, store {self._address}: {said}; {_fix(said)}") from None


def _address(settings: Settings, location: Location) -> tuple[str | None, bool]:
    """The endpoint as requests go to it, and whether the bucket is part of its name, as OBS wants it."""
    if settings.endpoint is None or location.scheme != "obs":
        return settings.endpoint, False
    scheme, _, host = settings.endpoint.partition("://")
    name = host.partition(":")[0]
    if name == "localhost" or name.replace(".", "").isdecimal():
        return settings.endpoint, False
    bare = host.removeprefix(f"{location.bucket}.")
    return f"{scheme}://{location.bucket}.{bare}", True


def _fix(said: str) -> str:
    if "NoSuchBucket" in said:
        return "check the bucket's name, and AWS_ENDPOINT_URL"
    if "No space left" in said or "Permission denied (os" in said:
        return "make room there, or let this user write there"
    if NOT_ALLOWED.search(said):
        return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and what they may do there"
    if NOT_THERE.search(said):
        return "check the key"
    return "check AWS_ENDPOINT_URL and the network; the same command goes on where this one ended"


def _said(error: Exception) -> str:
    """In one line; of an answer in XML its code and message alone."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())
    if answer := ANSWER.search(text):
        return f"{answer[1]}: {answer[2]}"
    return text[:400]


def _chunks(path: Path, tick: Tick) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            tick(len(chunk))
            yield chunk


def _bare(etag: Any) -> str:
    return str(etag or "").strip('"')
