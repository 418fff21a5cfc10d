"""`glance`: a look at a few small files of a folder, wherever it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tandem.errors import UsageError
from tandem.storage.bucket import Bucket
from tandem.storage.copying import Listener, download
from tandem.storage.location import Location


@contextmanager
def glance(place: str, names: Collection[str], environment: Mapping[str, str], listener: Listener) -> Iterator[Path]:
    """A folder itself; of a location, for as long as the block lasts, a folder of its files of these names.

    Args:
        place: A path of this machine, or a location.
        names: Without the folders in which they may lie.
        environment: The process's environment variables.
        listener: Is told how it goes.

    Raises:
        StorageError: The store refuses or cannot be reached.
        UsageError: There is no such file, or something is not set.
    """
    if (location := Location.of(place)) is None:
        yield Path(place)
        return
    bucket = Bucket.connect(location, environment)
    found = {name for name in bucket.list(location.key) if name.rpartition("/")[2] in names}
    if not found:
        raise UsageError(f"{location}: has no {' or '.join(names)} below it; check the bucket and the key")
    with TemporaryDirectory(prefix="tandem-glance-") as folder:
        download(bucket, location, Path(folder), listener, names=found)
        yield Path(folder)
