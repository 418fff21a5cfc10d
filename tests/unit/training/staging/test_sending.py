"""In which order a checkpoint goes to a store, and that nobody waits for it; a server is in `integration`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from threading import Event

import pytest

from tandem.errors import StorageError
from tandem.storage.bucket import Bucket
from tandem.storage.location import Location
from tandem.training.progress import Silence
from tandem.training.staging import outbox
from tandem.training.staging.checkpoints import Hosts, StoredCheckpoints
from tandem.training.staging.outbox import Outbox

POINTER = "latest_checkpointed_iteration.txt"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "LOOK_S", 0.01)
    monkeypatch.setattr(outbox, "AGAIN_S", 0.01)


def publish(folder: Path, step: int) -> None:
    at = folder / f"iter_{step:07d}"
    at.mkdir(parents=True)
    (at / "rank_00000.safetensors").write_bytes(b"part")
    digests = {"rank_00000.safetensors": sha256(b"part").hexdigest()}
    (at / "state.json").write_text(json.dumps({"step": step, "sha256": digests}))
    (folder / POINTER).write_text(f"{step}\n")


def test_parts_then_logs_then_the_pointer_and_another_machine_goes_on(tmp_path: Path) -> None:
    memory = pytest.importorskip("obstore.store", reason="no obstore; install .[s3]").MemoryStore()
    location = Location("s3", "work", "run")
    bucket = Bucket(memory, Location("s3", "work", ""), "memory")
    alone = Hosts(count=1, rank=0)
    first = StoredCheckpoints(tmp_path / "first", bucket, location, alone, keep_last=1)
    assert not first.take_in(Silence(), print)
    for step in (5, 10):
        publish(tmp_path / "first", step)
        there: list[set[str]] = []
        assert first.send(lambda: False, lambda there=there: there.append(set(bucket.list("run"))))
        assert {f"iter_{step:07d}/rank_00000.safetensors", f"iter_{step:07d}/state.json"} <= there[0]
        assert bucket.read(f"run/{POINTER}") == f"{step}\n".encode()
        assert not first.send(lambda: False, lambda: None), "nothing is new"
    assert {name.partition("/")[0] for name in bucket.list("run")} == {"iter_0000010", POINTER}
    second = StoredCheckpoints(tmp_path / "second", bucket, location, alone, keep_last=1)
    assert second.take_in(Silence(), print)
    assert (tmp_path / "second" / POINTER).read_text() == "10\n"
    assert (tmp_path / "second" / "iter_0000010" / "rank_00000.safetensors").read_bytes() == b"part"
    assert not second.send(lambda: False, lambda: None), "it is there already"
    bucket.write(f"run/{POINTER}", b"none")
    with pytest.raises(StorageError, match=r"latest_checkpointed_iteration\.txt: holds no step; write one of \[10\]"):
        second.take_in(Silence(), print)


def test_a_run_that_has_lost_the_place_names_nothing_there(tmp_path: Path) -> None:
    memory = pytest.importorskip("obstore.store", reason="no obstore; install .[s3]").MemoryStore()
    bucket, calls = Bucket(memory, Location("s3", "work", ""), "memory"), []

    def lost() -> None:
        calls.append(1)
        if len(calls) > left:
            raise StorageError("taken over")

    for left in range(4):
        calls.clear()
        folder = tmp_path / str(left)
        publish(folder, 5)
        sender = StoredCheckpoints(folder, bucket, Location("s3", "work", "run"), Hosts(count=1, rank=0), 1, lost)
        with pytest.raises(StorageError, match="taken over"):
            sender.send(lambda: True, lambda: None)
        assert bucket.read(f"run/{POINTER}") is None
        assert len(bucket.list("run")) == max(0, left - 1)


def nothing(ended: Callable[[], bool]) -> bool:
    return False


def test_a_step_does_not_wait_for_what_is_sent_but_the_end_does() -> None:
    begun, goes_on, done = Event(), Event(), []

    def slow(ended: Callable[[], bool]) -> bool:
        if done:
            return False
        begun.set()
        goes_on.wait(10)
        done.append(ended())
        return True

    before = time.monotonic()
    with Outbox(slow, lambda: None, [lambda: done.append(True)], print, "here"):
        assert begun.wait(10)
        assert not done
        assert time.monotonic() - before < 10
        goes_on.set()
    assert done[-1] is True
    assert len(done) == 2


def test_a_failure_is_said_once_and_an_error_only_at_the_end() -> None:
    notes: list[str] = []
    tries = 0

    def failing(ended: Callable[[], bool]) -> bool:
        nonlocal tries
        tries += 1
        raise StorageError("s3://work/run: broke off")

    sending = Outbox(failing, lambda: None, [], notes.append, "here")
    sending.__enter__()
    while tries < 3:
        time.sleep(0.01)
    with pytest.raises(StorageError, match="broke off; everything is whole in here: start the run again"):
        sending.__exit__(None, None, None)
    assert notes == ["not sent yet: s3://work/run: broke off; training goes on, and it is tried again"]
    with pytest.raises(KeyboardInterrupt), Outbox(failing, lambda: None, [], notes.append, "here"):
        raise KeyboardInterrupt
    assert notes[-1].endswith("is whole in here, and is sent when the run is started again")


def test_results_are_sent_of_a_run_that_ended_well_alone() -> None:
    sent: list[str] = []
    with pytest.raises(ValueError, match="broken"), Outbox(
        nothing, lambda: sent.append("logs"), [lambda: sent.append("export")], print, "here"
    ):  # fmt: skip
        raise ValueError("broken")
    assert sent == ["logs"]
    with Outbox(nothing, lambda: sent.append("logs"), [lambda: sent.append("export")], print, "here"):
        pass
    assert sent == ["logs", "logs", "export"]
