"""What a run has on an object store: whether its inputs are there, and the credentials at hand list it and write."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from tandem.catalogue.drawing import size_text
from tandem.storage.bucket import Bucket
from tandem.storage.location import Location
from tandem.training.preflight.finding import Remark, counted, good, note, problem
from tandem.training.preflight.space import look_at_folders
from tandem.training.settings.run import Run
from tandem.training.staging.staging import Staging


def look_at_stores(run: Run, staging: Staging) -> Iterator[Remark]:
    """Every place on a store that the run reads or writes, and whether the cache has room.

    Nothing is fetched; where the run writes, an empty object is put and removed.

    Raises:
        StorageError: The store refuses, or cannot be reached.
        UsageError: An address or credentials are missing.
    """
    paths, inputs = run.paths, staging.inputs()
    outputs = (paths.processed, paths.checkpoints, paths.logs, paths.process_logs)
    remarks: list[Remark] = []
    fetched: dict[Path, int] = {}

    def look(bucket: Bucket, location: Location, path: Path) -> None:
        sizes = stored_sizes(bucket, location, path, prefix=path == paths.prepared)
        if path in inputs and not sizes:
            remarks.append(problem(f"{location}: holds nothing; check the key, or send the input there"))
        else:
            fetched[path] = sum(sizes) if path in inputs and not path.exists() else 0
            remarks.append(good(f"{location}: {counted(len(sizes), 'object')}, {size_text(sum(sizes))}"))
        if path in outputs:
            _require_writable(bucket, location)

    for path in dict.fromkeys((*inputs, *outputs)):
        staging.look(path, look)
        yield from remarks
        remarks.clear()
    if other := staging.holder():
        yield note(
            f"{run.paths.checkpoints}: {other}, has not said that it ended; the run waits for a sign of it first"
        )
    yield from look_at_folders({path: size for path, size in fetched.items() if size})


def _require_writable(bucket: Bucket, location: Location) -> None:
    """Write an object and remove it; several hosts may look at once."""
    probe = (location / f".probe-{secrets.token_hex(8)}").key
    bucket.write(probe, b"")
    bucket.delete([probe])


def stored_sizes(bucket: Bucket, location: Location, path: Path, *, prefix: bool) -> list[int]:
    """Bytes of the objects of a folder, of one object, or of all objects whose names begin so."""
    found = bucket.list(location.key)
    if found or not prefix:
        one = bucket.find(location.key) if location.key and not found else None
        return [entry.size for entry in (*found.values(), *([one] if one else []))]
    beside = bucket.list(location.parent.key)
    return [entry.size for name, entry in beside.items() if name.startswith(f"{path.name}_")]
