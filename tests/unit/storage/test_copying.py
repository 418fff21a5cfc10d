"""What differs and in which order it is copied, on obstore's store in memory; a server is in `integration`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tandem.errors import StorageError
from tandem.storage.bucket import PART, Bucket, Tick
from tandem.storage.copying import Synced, download, upload
from tandem.storage.ledger import etag_of
from tandem.storage.location import Location

obstore = pytest.importorskip("obstore", reason="no obstore; install .[s3]")
HERE = Location("s3", "work", "run")
POINTER = "latest_checkpointed_iteration.txt"


class Quiet:
    def begin(self, stage: str, steps: int | None, done: int = 0) -> None: ...

    def advance(self, done: int, numbers: str) -> None: ...

    def end(self, stage: str) -> None: ...


class Recorded(Bucket):
    """Remembers what is done to it, and breaks off where it is told to."""

    def __init__(self, store: Any) -> None:
        super().__init__(store, Location("s3", "work", ""), "memory")
        self.done: list[str] = []
        self.breaks_at: str | None = None

    def upload(self, path: Path, key: str, tick: Tick, digest: str | None = None) -> Any:
        if key == self.breaks_at:
            raise StorageError(f"{key}: broke off")
        entry = super().upload(path, key, tick, digest)
        self.done.append(key)
        return entry

    def delete(self, keys: Any) -> None:
        super().delete(keys)
        self.done += [f"-{key}" for key in keys]


@pytest.fixture
def bucket() -> Recorded:
    from obstore.store import MemoryStore

    return Recorded(MemoryStore())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (POINTER, "a/one", "data_prepared.json", "data.bin", ".x.1.part"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(f"{name}\n")
    return tmp_path / "from"


def up(folder: Path, bucket: Bucket, **options: Any) -> Synced:
    return upload(folder, bucket, HERE, Quiet(), workers=1, **options)


def down(bucket: Bucket, folder: Path, **options: Any) -> Synced:
    return download(bucket, HERE, folder, Quiet(), workers=1, **options)


def test_there_and_back_is_the_same_and_only_what_differs_is_copied(
    folder: Path, bucket: Recorded, tmp_path: Path
) -> None:
    assert up(folder, bucket) == Synced(copied=4, bytes=sum(map(len, bucket.done)) - 4 * 3, same=0, deleted=0)
    back = tmp_path / "back"
    assert down(bucket, back).copied == 4
    assert (back / "a" / "one").read_text() == "a/one\n"
    assert not (back / ".x.1.part").exists()
    assert down(bucket, back).copied == 0
    assert up(folder, bucket).same == 4
    (folder / "a" / "one").write_text("A/one\n")  # as long as before
    assert up(folder, bucket).copied == 1
    assert down(bucket, back).copied == 1
    assert (back / "a" / "one").read_text() == "A/one\n"


def test_without_notes_of_an_earlier_sync_contents_are_compared(folder: Path, bucket: Recorded) -> None:
    up(folder, bucket)
    for note in folder.glob(".tandem-sync-*"):
        note.unlink()
    os.utime(folder / "data.bin", ns=(1, 1))
    listed = bucket.list("run")
    md5 = {name: etag_of(folder / name, "0" * 32) for name in listed}
    bucket.list = lambda key: {  # type: ignore[method-assign]  # as a server lists them; this store counts
        name: type(one)(one.size, md5[name] or "") for name, one in listed.items()
    }
    assert up(folder, bucket).same == 4
    (folder / "data.bin").write_text("DATA.bin\n")
    assert up(folder, bucket).copied == 1


def test_what_others_are_found_by_comes_last_and_a_mark_goes_first(folder: Path, bucket: Recorded) -> None:
    up(folder, bucket)
    assert set(bucket.done[:2]) == {"run/a/one", "run/data.bin"}
    assert bucket.done[2:] == ["run/data_prepared.json", f"run/{POINTER}"]
    bucket.done.clear()
    for name in ("data.bin", "data_prepared.json"):
        (folder / name).write_text("anew\n")
    bucket.breaks_at = "run/data.bin"
    with pytest.raises(StorageError):
        up(folder, bucket)
    assert bucket.done == ["-run/data_prepared.json"]
    assert "data_prepared.json" not in bucket.list("run"), "no mark vouches for data of two kinds"
    bucket.breaks_at = None
    up(folder, bucket)
    assert bucket.read("run/data_prepared.json") == b"anew\n"


def test_nothing_is_deleted_unasked(folder: Path, bucket: Recorded, tmp_path: Path) -> None:
    up(folder, bucket)
    (folder / "a" / "one").unlink()
    assert up(folder, bucket).deleted == 0
    assert up(folder, bucket, delete=True).deleted == 1
    assert "a/one" not in bucket.list("run")
    back = tmp_path / "back"
    back.mkdir()
    (back / "mine").touch()
    assert down(bucket, back).deleted == 0
    assert down(bucket, back, delete=True).deleted == 1
    assert not (back / "mine").exists()


def test_what_changed_here_is_known_without_asking_the_store(folder: Path, bucket: Recorded) -> None:
    assert up(folder, bucket, known=True).copied == 4
    bucket.write("run/a/one", b"of another host")
    assert up(folder, bucket, known=True).copied == 0
    assert bucket.read("run/a/one") == b"of another host"


def test_a_link_to_a_folder_is_refused_by_name(folder: Path, bucket: Recorded, tmp_path: Path) -> None:
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="link: is a link to a folder"):
        up(folder, bucket)


def test_an_etag_of_parts_is_computed_by_our_own_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(PART + 1)
    assert etag_of(path, "x-3") is None
    assert (etag_of(path, "x-2") or "").endswith("-2")
