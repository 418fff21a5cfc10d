"""`sync`: one folder, file, location or object to the other side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tandem.errors import StorageError, UsageError
from tandem.storage.bucket import Bucket
from tandem.storage.copying import Listener, Synced, download, upload
from tandem.storage.location import Location


def sync(source: str, target: str, environment: Mapping[str, str], listener: Listener, *, delete: bool = False,
         workers: int = 8) -> Synced:  # fmt: skip
    """Make a folder as a location is, or a location as a folder; a single file or object goes into the target.

    Args:
        source: A path of this machine, or a location.
        target: The other of the two.
        environment: The process's environment variables.
        listener: Is told how it goes.
        delete: Remove from the target what the source has not.
        workers: Files at once.

    Raises:
        StorageError: The store refuses or cannot be reached, or there is no source.
        UsageError: Both are of one kind, or something is not set.
    """
    here, there = Location.of(source), Location.of(target)
    if here is not None and there is None:
        return fetch(Bucket.connect(here, environment), here, Path(target), listener, delete=delete, workers=workers)
    if there is not None and here is None:
        return _send(Path(source), Bucket.connect(there, environment), there, listener, delete=delete, workers=workers)
    raise UsageError(f"{source}, {target}: one is a folder of this machine, the other is s3://BUCKET/KEY; give both so")


def fetch(bucket: Bucket, source: Location, folder: Path, listener: Listener, *, delete: bool = False,
          forget: bool = False, workers: int = 8) -> Synced:  # fmt: skip
    """What is below a location to a folder, or an object of exactly that name into it; as `sync` and `download`."""
    if bucket.list(source.key):
        return download(bucket, source, folder, listener, delete=delete, forget=forget, workers=workers)
    if not source.key or bucket.find(source.key) is None:
        raise StorageError(f"{source}: there is nothing; check the bucket, the key and AWS_ENDPOINT_URL")
    _refuse_delete(delete, str(source))
    return download(bucket, source.parent, folder, listener, workers=1, names={source.name})


def _send(source: Path, bucket: Bucket, target: Location, listener: Listener, *, delete: bool, workers: int) -> Synced:
    if source.is_dir():
        return upload(source, bucket, target, listener, delete=delete, workers=workers)
    if not source.exists():
        raise StorageError(f"{source}: is not there; check its name")
    _refuse_delete(delete, str(source))
    return upload(source.parent, bucket, target, listener, workers=1, names={source.name})


def _refuse_delete(delete: bool, source: str) -> None:
    if delete:
        raise UsageError(f"{source}: is one file, and everything beside it would be removed; leave out --delete")
