"""Who has a place on a store: one at a time, whoever is gone not for long."""

from __future__ import annotations

import itertools
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from tandem.errors import StorageError
from tandem.storage.bucket import Bucket
from tandem.storage.location import Location
from tandem.training.staging import lease
from tandem.training.staging.lease import NAME, Followed, Lease

PLACE = Location("s3", "work", "run")
KEY = f"run/{NAME}"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    monkeypatch.setattr(lease, "STALE_S", 0.5)
    monkeypatch.setattr(lease, "LOOK_S", 0.01)


@pytest.fixture
def bucket() -> Bucket:
    store = pytest.importorskip("obstore.store", reason="no obstore; install .[s3]")
    return Bucket(store.MemoryStore(), Location("s3", "work", ""), "memory")


def gone(bucket: Bucket, folder: Path) -> Lease:
    """An owner that was killed: it has the lease, and does nothing more."""
    owner = Lease(bucket, PLACE, folder, print)
    owner._ended.set()
    return owner.__enter__()


def test_whoever_lives_keeps_it_and_gives_it_back(bucket: Bucket, tmp_path: Path) -> None:
    with Lease(bucket, PLACE, tmp_path / "a", print) as first:
        with pytest.raises(
            StorageError, match=r"^s3://work/run: another run \(.*, pid \d+, at 20.*\) is at work there"
        ):
            Lease(bucket, PLACE, tmp_path / "b", print).__enter__()
        time.sleep(0.6)
        first.require()
    with Lease(bucket, PLACE, tmp_path / "b", print):
        pass
    assert bucket.read(KEY) is None


def test_whoever_is_gone_is_waited_for_but_not_on_its_own_machine(bucket: Bucket, tmp_path: Path) -> None:
    gone(bucket, tmp_path / "a")
    said: list[str] = []
    with Lease(bucket, PLACE, tmp_path / "a", said.append):
        assert not said
    killed = gone(bucket, tmp_path / "a")
    with Lease(bucket, PLACE, tmp_path / "b", said.append) as second:
        assert "was there last" in said[0]
        second.require()
        with pytest.raises(StorageError, match="cannot be kept"):
            killed.require()  # as one that was only asleep would
        killed._renew()
        with pytest.raises(StorageError, match="has taken it over"):
            killed.require()
        killed.__exit__(None, None, None)
        assert bucket.read(KEY) is not None, "it is the second's"


def test_of_two_that_come_together_one_gets_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    late = Lease(bucket, PLACE, tmp_path / "b", print)
    monkeypatch.setattr(late, "_left_behind", lambda: None)  # it looked before the other one took it
    with Lease(bucket, PLACE, tmp_path / "a", print), pytest.raises(StorageError, match="is at work there"):
        late.__enter__()


def test_one_that_was_removed_is_written_again(bucket: Bucket, tmp_path: Path) -> None:
    with Lease(bucket, PLACE, tmp_path / "a", print) as held:
        bucket.delete([KEY])
        deadline = time.monotonic() + 5
        while bucket.read(KEY) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        held.require()


def test_another_host_sends_as_long_as_its_first_one_has_it(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.0)
    second = Followed(bucket, PLACE)
    first = gone(bucket, tmp_path / "a")
    second.require()
    with Lease(bucket, PLACE, tmp_path / "b", print):
        for _ in range(2):
            with pytest.raises(StorageError, match=r"^s3://work/run: .*, pid \d+, at 20.* has taken it over"):
                second.require()
    second.require()
    first._ended.set()


def test_clocks_that_jump_are_nothing_to_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hours = itertools.cycle([0, 1, -1])

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=next(hours))

    monkeypatch.setattr(lease, "datetime", Jumping)
    for _ in range(3):
        with Lease(bucket, PLACE, tmp_path / "a", print), pytest.raises(StorageError, match="is at work there"):
            Lease(bucket, PLACE, tmp_path / "b", print).__enter__()
        gone(bucket, tmp_path / "a")
        with Lease(bucket, PLACE, tmp_path / "b", print) as second:
            second.require()


def test_a_store_without_conditional_puts_is_named(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: list[str] = []
    monkeypatch.setattr(bucket, "unconditional", True)
    with Lease(bucket, PLACE, tmp_path, said.append):
        assert said[0].startswith("s3://work/run: the store takes no conditional puts (it answers 501)")
    monkeypatch.setattr(bucket, "swap", lambda key, before, after: False)
    with pytest.raises(StorageError, match=r"^s3://work/run: cannot be kept for one run.* \(.*412\) where it is; use"):
        Lease(bucket, PLACE, tmp_path, print).__enter__()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"[" * 100_000])
def test_what_no_run_wrote_keeps_nobody_out(content: bytes, bucket: Bucket, tmp_path: Path) -> None:
    bucket.write(KEY, content)
    with Lease(bucket, PLACE, tmp_path, print) as taken:
        taken.require()
        assert b"pid" in (bucket.read(KEY) or b"")
