"""A run's checkpoints on an S3 server: killed at every change there, and written over after a run has gone back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import killed_sending
import pytest
from killed_sending import Quiet, stored
from s3_server import ABSENT, BUCKET, REASON, s3_server

from tandem.errors import StorageError
from tandem.storage.bucket import Bucket
from tandem.storage.location import Location
from tandem.training.staging.checkpoints import Hosts

pytestmark = [pytest.mark.full, pytest.mark.skipif(ABSENT, reason=REASON)]
POINTER = "latest_checkpointed_iteration.txt"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with s3_server() as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def publish(folder: Path, step: int, words: str = "", ranks: tuple[int, ...] = (0, 1), of: int = 2) -> None:
    """What the run writes; of several hosts this one may hold some ranks' parts alone."""
    parts = {f"rank_{rank:05d}.safetensors": f"{step} {rank} {words}".encode() for rank in range(of)}
    at = folder / f"iter_{step:07d}"
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir(parents=True)
    for rank in ranks:
        name = f"rank_{rank:05d}.safetensors"
        (at / name).write_bytes(parts[name])
    if 0 in ranks:
        digests = {name: sha256(content).hexdigest() for name, content in parts.items()}
        (at / "state.json").write_text(json.dumps({"step": step, "sha256": digests}))
        (folder / POINTER).write_text(f"{step}\n")


def take(folder: Path, url: str) -> int | None:
    """The step that a machine goes on from; its checkpoint is whole."""
    stored(folder, url).take_in(Quiet(), print)
    if not (folder / POINTER).exists():
        return None
    step = int((folder / POINTER).read_text())
    at = folder / f"iter_{step:07d}"
    for name, digest in json.loads((at / "state.json").read_text())["sha256"].items():
        assert sha256((at / name).read_bytes()).hexdigest() == digest, name
    return step


def send(folder: Path, url: str) -> None:
    checkpoints = stored(folder, url)
    checkpoints.take_in(Quiet(), print)
    while checkpoints.send(lambda: True, lambda: None):
        pass


def listed(url: str) -> set[str]:
    location = Location.of(url)
    assert location is not None
    bucket = Bucket.connect(location, os.environ)
    return {name.partition("/")[0] for name in bucket.list(location.key)}


@pytest.mark.parametrize("again", [False, True], ids=["a new step", "a step written over"])
def test_a_kill_at_any_change_leaves_one_to_go_on_from(tmp_path: Path, again: bool) -> None:
    number = 0
    while True:
        url, here = f"s3://{BUCKET}/{again}/{number}", tmp_path / str(number)
        for step in (1, 2, 3):
            publish(here, step)
            send(here, url)
        # A run that went back to 2 writes 3 once more.
        publish(here, 3 if again else 4, words="anew")
        done = subprocess.run(
            [sys.executable, killed_sending.__file__, here, url, str(number)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        fresh = take(tmp_path / f"{number}-fresh", url)
        if done.returncode == 0:
            assert int(done.stdout) == number
            assert fresh == (3 if again else 4)
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert fresh in (2, 3, 4)
        send(here, url)
        newest = 3 if again else 4
        assert take(tmp_path / f"{number}-later", url) == newest
        assert (tmp_path / f"{number}-later" / f"iter_{newest:07d}" / "rank_00001.safetensors").read_text() == (
            f"{newest} 1 anew"
        )
        kept = {POINTER, f"iter_{newest - 1:07d}", f"iter_{newest:07d}"}
        assert kept <= listed(url) <= kept | {"iter_0000001", "iter_0000002"}, "a killed removal is made up for later"
        number += 1
    assert number >= 5


def test_who_decides_where_a_run_goes_on(tmp_path: Path) -> None:
    url, first, second = f"s3://{BUCKET}/who", tmp_path / "first", tmp_path / "second"
    publish(first, 1)
    send(first, url)
    publish(first, 2)  # and is killed before it is sent
    assert take(first, url) == 2, "nobody else has said anything"
    assert take(second, url) == 1
    publish(second, 5)
    send(second, url)
    assert take(first, url) == 5, "another machine has gone on"
    assert not (first / "iter_0000002").exists()
    shutil.rmtree(first / "iter_0000005")
    (first / POINTER).unlink()
    assert take(first, url) == 5, "a cache that was emptied is filled"


def test_a_host_names_a_checkpoint_when_the_parts_of_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.training.staging.checkpoints.WAIT_S", 0.5)
    monkeypatch.setattr("tandem.training.staging.checkpoints.LOOK_S", 0.1)
    url = f"s3://{BUCKET}/hosts"
    leader = stored(tmp_path / "0", url, Hosts(count=2, rank=0))
    other = stored(tmp_path / "1", url, Hosts(count=2, rank=1))
    for one in (leader, other):
        one.take_in(Quiet(), print)
    publish(tmp_path / "0", 1, ranks=(0,))
    publish(tmp_path / "1", 1, ranks=(1,))
    with pytest.raises(StorageError, match=r"iter_0000001: rank_00001\.safetensors did not come from the other hosts"):
        leader.send(lambda: True, lambda: None)
    assert take(tmp_path / "fresh", url) is None
    assert other.send(lambda: True, lambda: None)
    assert not other.send(lambda: True, lambda: None)
    assert leader.send(lambda: True, lambda: None)
    assert take(tmp_path / "later", url) == 1
    for rank, name in enumerate("01"):
        stored(tmp_path / name, url, Hosts(count=2, rank=rank)).take_in(Quiet(), print)
        assert len(list((tmp_path / name / "iter_0000001").glob("rank_*"))) == 2, "every host has all to go on from"
