"""`Staging`: what a run has on an object store, on this machine when it is needed, and back there when it is made.

    before     inputs, prepared data, the checkpoint to go on from, logs, an export that is there already
    while      each checkpoint as soon as it is named, logs every minute (`Outbox`)
    after      the last of these, the exported model, and the mark that says what it was made from

The run itself sees folders. What is in the cache and on no store is never removed by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from tandem.storage.bucket import Bucket
from tandem.storage.copying import download, upload
from tandem.storage.location import Location
from tandem.storage.sync import fetch
from tandem.training.data.output import mark_path
from tandem.training.progress import Progress, Silence
from tandem.training.settings.run import Run
from tandem.training.staging.checkpoints import Hosts, StoredCheckpoints
from tandem.training.staging.lease import Followed, Lease
from tandem.training.staging.outbox import Outbox


class Staging:
    """Of one run on one host; does nothing for a run that has nothing on a store.

    Args:
        run: Its paths say what is in the cache.
        prepared: The prefix of its prepared data.
        environment: The process's environment variables.
        progress: Is told what is fetched and sent.
    """

    def __init__(self, run: Run, prepared: Path, environment: Mapping[str, str], progress: Progress) -> None:
        self._run, self._prepared, self._progress, self._environment = run, prepared, progress, environment
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._leads = run.launch.node_rank == 0
        self._followed = self._followed_lease()
        self._lease = self._new_lease()
        self._checkpoints = self._stored_checkpoints()

    def alone(self) -> AbstractContextManager[object]:
        """Within the block no other run has the same checkpoints on a store; of several hosts the first sees to it.

        The others cannot know whether who has them is their own first host, and say who it is: if another run, their
        first host is refused, and they would wait for it in vain.

        Raises:
            StorageError: Another run has them, or the store refuses.
        """
        if self._followed is not None and (holder := self._followed.holder()) is not None:
            self._progress.note(
                f"{self._location(self._run.paths.checkpoints)}: {holder}, has this place; unless that is this run's "
                f"first host ({self._run.launch.master_addr}), it is another run: end one of the two on all hosts, or "
                "give this one another place (OUTPUT_SAVE_DIR, --out)"
            )
        return self._lease or nullcontext()

    def take_in(self, *, fresh: bool) -> None:
        """Fetch all that the run reads, and what it made before; with `fresh` only what it reads.

        Raises:
            StorageError: The store refuses, or something is not there.
            UsageError: An address or credentials are missing.
        """
        for path in dict.fromkeys(self.inputs()):
            self._at(path, self._fetch_input)
        if not mark_path(self._prepared).exists():
            self._at(self._prepared.parent, self._fetch)
        if fresh:
            return
        if self._checkpoints is None or self._checkpoints.take_in(self._progress, self._progress.note):
            for path in (self._run.paths.logs, self._run.paths.process_logs):
                self._at(path, self._fetch)
        for path in (self._run.exported, self._run.adapter):
            self._at(path, self._fetch)
        self._at(self._run.mark.parent, partial(self._fetch, names={self._run.mark.name}))

    def clear(self) -> None:
        """Remove from the store what the run made, but for prepared data and logs."""
        if self._checkpoints is not None:
            self._checkpoints.clear()
        self._at(self._run.mark, lambda bucket, at, path: bucket.delete([at.key] if bucket.find(at.key) else []))
        for folder in (self._run.exported, self._run.adapter):
            self._at(folder, lambda bucket, at, path: bucket.delete([(at / name).key for name in bucket.list(at.key)]))

    def send_prepared(self) -> None:
        """Send the prepared data, where it is not there.

        Raises:
            StorageError: The store refuses.
        """
        if self._leads:
            self._at(self._prepared.parent, self._send)

    def sending(self) -> AbstractContextManager[object]:
        """Within the block what the run makes is sent, and when it ends what is left (`Outbox`)."""
        paths = self._run.paths
        if self._run.mirror is None:
            return nullcontext()
        results = [self._run.exported, self._run.adapter] if self._leads else []
        return Outbox(
            self._send_checkpoint,
            self._send_logs,
            [*(partial(self._at, path, self._send) for path in results), self._send_mark],
            self._progress.note,
            str(paths.checkpoints),
        )

    def tell(self) -> None:
        """Say where the result is."""
        if (location := self._location(self._run.exported)) is not None and self._leads:
            self._progress.note(f"{location} has what was trained")

    def inputs(self) -> list[Path]:
        """All that the run reads, on a store or not."""
        paths, other = self._run.paths, self._run.resume.checkpoint
        given = (paths.prepared or paths.data, paths.weights, paths.tokenizer, other)
        return [path for path in given if path and path != paths.checkpoints]

    def look(self, path: Path, act: Callable[[Bucket, Location, Path], object]) -> None:
        """Do something about a path that is on a store, and nothing about another."""
        if (location := self._location(path)) is not None:
            act(self._bucket(location), location, path)

    def holder(self) -> str | None:
        """Who was at work at the same checkpoints on a store and has not said that it ended; None for nobody.

        Raises:
            StorageError: The store refuses.
        """
        lease = self._lease or self._followed
        return lease.holder() if lease else None

    def away(self) -> int | None:
        """The step that the run goes on from once it is fetched; None where what is here decides, or nothing is there.

        Raises:
            StorageError: The store refuses.
        """
        return None if self._checkpoints is None else self._checkpoints.away()

    def _stored_checkpoints(self) -> StoredCheckpoints | None:
        paths, launch = self._run.paths, self._run.launch
        if (location := self._location(paths.checkpoints)) is None:
            return None
        hosts = Hosts(count=launch.nodes, rank=launch.node_rank)
        lease = self._lease or self._followed
        assert lease is not None, "every host looks at the lease of checkpoints on a store"
        keep_last = self._run.training.keep_last
        return StoredCheckpoints(paths.checkpoints, self._bucket(location), location, hosts, keep_last, lease.require)

    def _followed_lease(self) -> Followed | None:
        if (location := self._location(self._run.paths.checkpoints)) is None or self._leads:
            return None
        return Followed(self._bucket(location), location)

    def _new_lease(self) -> Lease | None:
        folder = self._run.paths.checkpoints
        if (location := self._location(folder)) is None or not self._leads:
            return None
        return Lease(self._bucket(location), location, folder, self._progress.note)

    def _location(self, path: Path) -> Location | None:
        mirror = self._run.mirror
        return None if mirror is None else mirror.location(path)

    def _bucket(self, location: Location) -> Bucket:
        name = (location.scheme, location.bucket)
        if name not in self._buckets:
            self._buckets[name] = Bucket.connect(location, self._environment)
        return self._buckets[name]

    def _at(self, path: Path, act: Callable[[Bucket, Location, Path], object]) -> None:
        """As `look`, for what only the run that has the place may do."""
        if self._location(path) is not None:
            self._require_lease()
            self.look(path, act)

    def _fetch_input(self, bucket: Bucket, location: Location, path: Path) -> None:
        """A folder, one object, or (of prepared data) all objects whose names begin so."""
        self._progress.note(f"{location} is fetched to {path}, where it differs")
        folder = bool(bucket.list(location.key))
        if path == self._run.paths.prepared and not folder:
            names = {name for name in bucket.list(location.parent.key) if name.startswith(f"{path.name}_")}
            download(bucket, location.parent, path.parent, self._progress, names=names)
        else:
            fetch(bucket, location, path if folder else path.parent, self._progress, forget=True)

    def _fetch(self, bucket: Bucket, location: Location, path: Path, names: set[str] | None = None) -> None:
        download(bucket, location, path, Silence(), names=names)

    def _send(self, bucket: Bucket, location: Location, path: Path, known: bool = False) -> None:
        if path.is_dir():
            upload(path, bucket, location, Silence() if known else self._progress, known=known)

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.require()

    def _send_checkpoint(self, ended: Callable[[], bool]) -> bool:
        self._require_lease()
        return self._checkpoints is not None and self._checkpoints.send(ended, self._send_logs)

    def _send_logs(self) -> None:
        paths = self._run.paths
        for path in (paths.process_logs, *([paths.logs] if self._leads else [])):
            self._at(path, partial(self._send, known=True))

    def _send_mark(self) -> None:
        mark = self._run.mark
        if self._leads and mark.exists():
            send = lambda bucket, at, path: upload(path, bucket, at, Silence(), names={mark.name})  # noqa: E731
            self._at(mark.parent, send)
