"""A named model trained on an object store alone: inputs, checkpoints, logs and export, through kills and an outage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from s3_server import ABSENT, BUCKET, REASON, s3_server

from tandem.catalogue.models import find_model
from tandem.catalogue.shrink import chosen_config
from tandem.deploy.port import free_ports
from tandem.model.random_folder import write_random_folder
from tandem.storage.bucket import Bucket
from tandem.storage.location import Location

pytestmark = [pytest.mark.full, pytest.mark.skipif(ABSENT, reason=REASON)]
MODEL = "qwen2-0.5b"
SMALL = {"SEQ_LEN": "128", "GBS": "4", "MBS": "1", "TRAIN_ITERS": "9", "SAVE_INTERVAL": "3", "LR": "1e-3"}
POINTER = "latest_checkpointed_iteration.txt"
SAVED = f"saved_models/{MODEL}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and weights."""
    folder = tmp_path_factory.mktemp("inputs")
    named = find_model(MODEL)
    config = chosen_config(named.config, tiny=True, shape=None, full=False)
    write_random_folder(config, named.tokenizer, folder / "weights", dtype="bfloat16", seed=0)
    rows = [{"instruction": f"What follows {n}?", "input": "", "output": f"It is {n + 1}."} for n in range(200)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "alpaca.parquet")
    return folder


@pytest.fixture
def server(inputs: Path) -> Iterator[dict[str, str]]:
    """Variables of a run whose inputs and outputs are all on a store."""
    with s3_server() as variables:
        words = ["-m", "tandem", "data", "sync", str(inputs), f"s3://{BUCKET}/in"]
        subprocess.run([sys.executable, *words], env=os.environ | variables, check=True, capture_output=True)
        yield {
            **variables,
            "ORIGINAL_TRAIN_DATA_PATH": f"s3://{BUCKET}/in/alpaca.parquet",
            "ORIGINAL_HF_WEIGHT": f"s3://{BUCKET}/in/weights",
            "INPUT_PROCESSED_DIR": f"s3://{BUCKET}/processed",
            "OUTPUT_SAVE_DIR": f"s3://{BUCKET}/out",
        }


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().kill()


def start(variables: Mapping[str, str], work: Path, *words: str) -> subprocess.Popen[str]:
    """A run on a machine whose cache is in a folder."""
    run = subprocess.Popen(
        [sys.executable, "-m", "tandem", "train", "sft", MODEL, "--set", "training.precision=float32", *words],
        env={**os.environ, **SMALL, **variables, "TANDEM_STORE_CACHE": str(work / "cache"), "NO_COLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=work,
    )  # fmt: skip
    STARTED.append(run)
    return run


def finish(run: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, said = run.communicate(timeout=240)
    assert run.returncode == code, said
    return out.strip(), said


def machine(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def bucket(variables: Mapping[str, str]) -> Bucket:
    return Bucket.connect(Location("s3", BUCKET, ""), variables)


def whole(variables: Mapping[str, str]) -> int | None:
    """The step that the store names, once all of it is proven to be there."""
    store, at = bucket(variables), f"out/{SAVED}"
    pointer = store.read(f"{at}/{POINTER}")
    if pointer is None:
        return None
    folder = f"{at}/iter_{int(pointer):07d}"
    parts = json.loads(store.read(f"{folder}/state.json") or b"")["sha256"]
    assert parts
    for name, digest in parts.items():
        assert sha256(store.read(f"{folder}/{name}") or b"").hexdigest() == digest
    return int(pointer)


def kill_when_named(run: subprocess.Popen[str], variables: Mapping[str, str], step: int) -> None:
    deadline = time.monotonic() + 120
    store = bucket(variables)
    while int(store.read(f"out/{SAVED}/{POINTER}") or 0) < step:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.communicate()


def steps(variables: Mapping[str, str]) -> list[int]:
    lines = bucket(variables).read(f"out/{SAVED}/log/metrics.jsonl") or b""
    return [json.loads(line)["step"] for line in lines.splitlines()]


def report(variables: Mapping[str, str], url: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "tandem", "train", "report", url, "--json"]
    done = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True, check=True)
    [summary] = json.loads(done.stdout)
    return dict(summary)


def exported(variables: Mapping[str, str]) -> bytes:
    return bucket(variables).read(f"out/{SAVED}/sft_hf/model.safetensors") or b""


def test_a_run_goes_on_on_any_machine_and_ends_as_one_that_was_never_killed(
    server: dict[str, str], inputs: Path, tmp_path: Path
) -> None:
    local = {"ORIGINAL_TRAIN_DATA_PATH": str(inputs / "alpaca.parquet"), "ORIGINAL_HF_WEIGHT": str(inputs / "weights")}
    at_home = machine(tmp_path, "home")
    expected = Path(finish(start(local, at_home))[0]) / "model.safetensors"
    first, second = machine(tmp_path, "first"), machine(tmp_path, "second")
    kill_when_named(start(server, first), server, 3)
    named = whole(server)
    assert named is not None
    assert named >= 3
    out, said = finish(start(server, second))
    assert f"iter_{named:07d} is fetched to go on from" in said
    assert f"goes on after step {named}" in said
    assert "prepare data: there already" in said, "what the first machine prepared was sent, too"
    assert whole(server) == 9
    assert steps(server) == list(range(1, 10))
    assert exported(server) == (at_home / expected).read_bytes()
    assert out.startswith(str(second / "cache"))
    assert f"s3://{BUCKET}/out/{SAVED}/sft_hf has what was trained" in said
    assert report(server, f"s3://{BUCKET}/out/{SAVED}")["steps"] == 9

    _, said = finish(start(server, first))
    assert "sft: there already, used again" in said, "also on a machine that knew less"
    _, said = finish(start(server, machine(tmp_path, "third"), "--fresh"))
    assert "goes on after" not in said
    assert whole(server) == 9
    assert exported(server) == (at_home / expected).read_bytes()


def test_two_runs_do_not_mix(server: dict[str, str], tmp_path: Path) -> None:
    first = start({**server, "TRAIN_ITERS": "2000"}, machine(tmp_path, "first"))
    while bucket(server).read(f"out/{SAVED}/{POINTER}") is None:
        assert first.poll() is None
        time.sleep(0.05)
    second = start(server, machine(tmp_path, "second"))
    _, said = finish(second, code=1)
    assert f"another run ({os.uname().nodename}, pid {first.pid}, at 20" in " ".join(said.split())
    first.send_signal(signal.SIGTERM)
    finish(first, code=130)
    assert bucket(server).read(f"out/{SAVED}/.in_use.lock") is None
    assert whole(server) is not None


def test_two_ranks(server: dict[str, str], tmp_path: Path) -> None:
    first, second = machine(tmp_path, "first"), machine(tmp_path, "second")
    two = ("--set", "launch.ranks=2")
    kill_when_named(start(server, first, *two), server, 3)
    named = whole(server)
    _, said = finish(start(server, second, *two))
    assert f"goes on after step {named}" in said
    assert whole(server) == 9
    assert steps(server) == list(range(1, 10))
    assert exported(server)


def test_two_hosts_that_share_nothing_but_the_store(server: dict[str, str], tmp_path: Path) -> None:
    [port] = free_ports("127.0.0.2", 1)
    meeting = {"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": str(port), "NNODES": "2", "GLOO_SOCKET_IFNAME": "lo"}
    hosts = [server | meeting | {"NODE_RANK": rank} for rank in "01"]
    places = [machine(tmp_path, name) for name in ("a", "b")]
    runs = [start(host, place) for host, place in zip(hosts, places, strict=True)]
    kill_when_named(runs[0], server, 3)
    runs[1].kill()
    runs[1].communicate()
    named = whole(server)
    places[1] = machine(tmp_path, "c")  # a new machine in the place of the second
    runs = [start(host, place) for host, place in zip(hosts, places, strict=True)]
    said = [finish(run)[1] for run in runs]
    assert f"goes on after step {named}" in said[0]
    assert whole(server) == 9
    assert steps(server) == list(range(1, 10))
    before = exported(server)
    places[1] = machine(tmp_path, "d")  # another new one, that knows of nothing when the run is made longer
    runs = [start(host | {"TRAIN_ITERS": "12"}, place) for host, place in zip(hosts, places, strict=True)]
    said = [finish(run)[1] for run in runs]
    assert "made longer after step 9: 12 steps, not 9" in said[0]
    assert whole(server) == 12
    assert steps(server) == list(range(1, 13))
    assert exported(server) != before


def test_an_outage_costs_no_step_and_nothing_that_is_here(server: dict[str, str], inputs: Path, tmp_path: Path) -> None:
    work = machine(tmp_path, "work")
    here = {"ORIGINAL_TRAIN_DATA_PATH": str(inputs / "alpaca.parquet"), "ORIGINAL_HF_WEIGHT": str(inputs / "weights")}
    with s3_server() as lost:
        run = start({**server, **here, **lost}, work)
        kept = work / "cache" / "host-0" / "s3" / BUCKET / "out" / SAVED
        while not (kept / "log" / "metrics.jsonl").exists():
            assert run.poll() is None
            time.sleep(0.02)
    _, said = finish(run, code=1)
    assert f"store {lost['AWS_ENDPOINT_URL']}" in said
    assert "start the run again to send the rest" in " ".join(said.split())
    assert (kept / POINTER).read_text() == "9\n"
    model = (kept / "sft_hf" / "model.safetensors").read_bytes()
    _, said = finish(start({**server, **here}, work))
    assert "sft: there already, used again" in said
    assert whole(server) == 9
    assert exported(server) == model
