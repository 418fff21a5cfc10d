"""`tandem data sync` against an S3 server: both ways, again, and after a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from s3_server import ABSENT, BUCKET, REASON, s3_server

from tandem.storage.bucket import PART, Bucket
from tandem.storage.ledger import NAME
from tandem.storage.location import Location

pytestmark = [pytest.mark.full, pytest.mark.skipif(ABSENT, reason=REASON)]
POINTER = "latest_checkpointed_iteration.txt"
FILES = 150


@pytest.fixture(scope="module")
def server() -> Iterator[Mapping[str, str]]:
    with s3_server() as variables:
        yield variables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Many files, one that is sent in parts, and a pointer to them."""
    source = tmp_path / "from"
    (source / "below" / "it").mkdir(parents=True)
    for number in range(FILES):
        (source / "below" / "it" / f"file {number} ü%2F.bin").write_bytes(os.urandom(40_000))
    (source / "large.safetensors").write_bytes(os.urandom(PART + 1_000_000))
    (source / POINTER).write_text("1\n")
    return source


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "tandem", "data", "sync", *map(str, words)]


def sync(server: Mapping[str, str], *words: str | Path) -> dict[str, Any]:
    done = subprocess.run(
        command(*words, "--json"), env=os.environ | server, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert server["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def kill_midway(server: Mapping[str, str], folder: Path, *words: str | Path) -> None:
    """SIGKILL as soon as some files are copied, and before all are."""
    process = subprocess.Popen(command(*words, "--workers", "2"), env=os.environ | server, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while sum(note.read_text().count("\n") for note in folder.glob(f"{NAME}*")) < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_there_and_back_and_again_after_kills(server: Mapping[str, str], folder: Path, tmp_path: Path) -> None:
    url, back = f"s3://{BUCKET}/run", tmp_path / "back"
    bucket = Bucket.connect(Location("s3", BUCKET, ""), server)
    kill_midway(server, folder, folder, url)
    killed = bucket.list("run")
    assert 20 <= len(killed) < FILES
    assert POINTER not in killed, "what it names is not there yet"
    done = sync(server, folder, url)
    assert done["copied"] == FILES + 2 - done["same"]
    assert done["same"] >= 20
    assert bucket.list("run").keys() == content(folder).keys()
    assert sync(server, folder, url)["copied"] == 0

    back.mkdir()
    kill_midway(server, back, url, back)
    assert not (back / POINTER).exists()
    assert all((folder / name).read_bytes() == data for name, data in content(back).items()), "whole or not there"
    assert sync(server, url, back)["same"] >= 20
    assert content(back) == content(folder)
    assert not list(back.rglob("*.part"))
    for note in back.glob(f"{NAME}*"):
        note.unlink()
    assert sync(server, url, back)["copied"] == 0, "ETags tell, also of what was sent in parts"

    (folder / "below" / "it" / "file 3 ü%2F.bin").unlink()
    assert sync(server, folder, url)["deleted"] == 0
    assert sync(server, folder, url, "--delete")["deleted"] == 1
    assert sync(server, url, back, "--delete")["deleted"] == 1
    assert content(back) == content(folder)


def test_one_object_and_one_file(server: Mapping[str, str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert sync(server, tmp_path / "rows.jsonl", f"s3://{BUCKET}/data")["copied"] == 1
    assert sync(server, f"s3://{BUCKET}/data/rows.jsonl", tmp_path / "got")["copied"] == 1
    assert content(tmp_path / "got") == {"rows.jsonl": b"{}\n"}
    assert sync(server, f"obs://{BUCKET}/data", tmp_path / "obs")["copied"] == 1


def test_what_goes_wrong_is_named_with_place_and_fix(server: Mapping[str, str], tmp_path: Path) -> None:
    def said(*words: str, **variables: str) -> str:
        environment = {**os.environ, **server, **variables}
        done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (1, 2)
        assert server["AWS_SECRET_ACCESS_KEY"] not in done.stderr
        return " ".join(done.stderr.split())

    address, here = server["AWS_ENDPOINT_URL"], str(tmp_path / "x")
    assert f"s3://nobody/x, store {address}: NoSuchBucket" in said("s3://nobody/x", here)
    assert f"s3://{BUCKET}/nothing: there is nothing; check the bucket, the key" in said(f"s3://{BUCKET}/nothing", here)
    assert "set AWS_ACCESS_KEY_ID" in said(f"s3://{BUCKET}/x", here, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert "obs:// needs the address of the store" in said(f"obs://{BUCKET}/x", here, AWS_ENDPOINT_URL="")
    assert "one is a folder of this machine" in said(here, str(tmp_path))
