"""An instance's ranks as real processes: they compute what one does, and the death of one ends all, at once."""

from __future__ import annotations

import errno
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest
import torch
from torch import Tensor

from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.engine import rank_memory
from tandem.engine import ranks as module
from tandem.engine.local_model import LocalModel
from tandem.engine.rank_memory import rank_caches
from tandem.engine.ranks import RankedModel, start_model
from tandem.engine.step import Step
from tandem.errors import ModelFolderError, ProcessError, UsageError
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.memory import Memory
from tandem.kv.paged import Chunk
from tandem.kv.shards import Shards
from tandem.model.folder import save
from tandem.model.random_weights import random_decoder

CPU = torch.device("cpu")
CONFIG = shrink(MODELS["yi-6b"].config, SmallShape(layers=2, vocab=51))
LAYOUT = CacheLayout.of(CONFIG, "float32", 4)
BLOCKS = 8
KILLED = r"rank 1 of {} died \(killed by SIGKILL\); restart the instance"
SOON = 2.0
"""Seconds within which the end is known."""

STEPS = [
    Step(tokens=[*range(10)], chunks=[Chunk([5, 2, 0], 0, 10, 10)], rows=[]),
    Step(tokens=[11, *range(20, 26)], chunks=[Chunk([5, 2, 0], 10, 1, 10), Chunk([1, 3], 0, 6, 6)], rows=[0, 6]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "model"
    save(random_decoder(CONFIG, torch.float32, 0), folder, GenerationDefaults(), {})
    return folder


def caches(count: int) -> list[KVCache]:
    return rank_caches(LAYOUT, BLOCKS, CPU, count)


def cleared(count: int) -> list[KVCache]:
    made = caches(count)
    for cache in made:
        cache.memory.data.zero_()
    return made


@pytest.fixture
def pair(folder: Path) -> Iterator[RankedModel]:
    model = start_model(folder, caches(2))
    assert isinstance(model, RankedModel)
    yield model
    model.close()
    assert children() == []


def children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "tandem.engine.rank" in child.cmdline():
                found.append(child)
    return found


def compute(model: RankedModel | LocalModel) -> Tensor:
    found = [model.logits(step) for step in STEPS]
    assert found[0] is None
    assert found[1] is not None
    return found[1]


def heads(shards: Shards) -> Tensor:
    """[N, L, P, S, K, D] of all ranks together."""
    whole = torch.zeros(BLOCKS, *shards.layout.block_shape)
    for rank, cache in enumerate(shards.caches):
        whole[..., list(shards.heads(rank)), :] = cache.blocks
    return whole


FOUR = pytest.param(4, marks=pytest.mark.full)


@pytest.mark.parametrize("count", [2, FOUR])
def test_ranks_compute_what_one_process_does(
    folder: Path, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert LAYOUT.kv_heads == 2  # so of four ranks, two share one
    one, several = cleared(1), cleared(count)
    alone, together = start_model(folder, one), start_model(folder, several)
    assert isinstance(alone, LocalModel)
    assert together.vocab_size == alone.vocab_size == CONFIG.vocab_size
    torch.testing.assert_close(compute(together), compute(alone), rtol=1e-4, atol=1e-4)
    for cache in several[:: count // 2]:
        assert cache.layout.kv_heads == 1
    torch.testing.assert_close(heads(Shards(LAYOUT, several)), one[0].blocks, rtol=1e-4, atol=1e-4)
    assert list(tmp_path.iterdir()) == [], "the ranks' meeting place would be left behind by SIGKILL"
    together.close()
    together.close()
    assert children() == []


def test_nothing_listens_beyond_loopback(pair: RankedModel) -> None:
    compute(pair)
    processes = [psutil.Process(), *children()]
    assert len(processes) == 2
    listening = [
        one.laddr.ip
        for process in processes
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2
    assert set(listening) == {"127.0.0.1"}


def test_death_between_steps_is_told(pair: RankedModel) -> None:
    told: queue.Queue[ProcessError] = queue.Queue()
    pair.watch(told.put)
    children()[0].kill()
    error = told.get(timeout=SOON)
    with pytest.raises(ProcessError, match=KILLED.format(2)) as raised:
        pair.logits(STEPS[0])
    assert raised.value is error
    pair.watch(told.put)
    assert told.get(timeout=SOON) is error, "who asks late is told as well"
    assert told.empty()


def test_whoever_is_told_may_close(pair: RankedModel) -> None:
    closed = threading.Event()

    def close(_: ProcessError) -> None:
        pair.close()
        closed.set()

    pair.watch(close)
    children()[0].kill()
    assert closed.wait(SOON)


@pytest.mark.parametrize("count", [2, FOUR])
def test_death_within_a_step_ends_the_step(folder: Path, count: int) -> None:
    model = start_model(folder, caches(count))
    compute(model)
    follower = min(children(), key=lambda child: child.pid)
    follower.send_signal(signal.SIGSTOP)
    killed_at: list[float] = []

    def kill() -> None:
        killed_at.append(time.monotonic())
        follower.kill()

    threading.Timer(0.5, kill).start()
    with pytest.raises(ProcessError, match=KILLED.format(count)):
        model.logits(STEPS[1])
    assert 0 < time.monotonic() - killed_at[0] < SOON
    model.close()


def test_death_while_the_ranks_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object) -> None:
        """Without end; calls the check as the real one does."""
        check = arguments[-1]
        assert callable(check)
        while True:
            for child in children():
                child.kill()
            check()
            time.sleep(0.01)

    monkeypatch.setattr(module, "load", load)
    began = time.monotonic()
    with pytest.raises(ProcessError, match=KILLED.format(2)):
        start_model(folder, caches(2))
    assert time.monotonic() - began < SOON
    assert children() == []


def test_death_while_the_ranks_connect(pair: RankedModel) -> None:
    over = threading.Event()
    threading.Timer(0.2, children()[0].kill).start()
    with pytest.raises(ProcessError, match=KILLED.format(2)):
        pair._followers.alongside(over.wait)  # type: ignore[arg-type]
    over.set()


def test_what_a_rank_cannot_load_is_its_error(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original: Callable[..., list[msgspec.Struct]] = module._tasks

    def elsewhere(*arguments: object) -> list[msgspec.Struct]:
        return [msgspec.structs.replace(task, folder=str(tmp_path / "gone")) for task in original(*arguments)]

    monkeypatch.setattr(module, "_tasks", elsewhere)
    with pytest.raises(ProcessError, match=r"rank 1 of 2: .*gone"):
        start_model(folder, caches(2))
    assert children() == []


def test_what_the_first_rank_cannot_load_is_said_as_ever(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError):
        start_model(tmp_path / "gone", caches(2))


LEADER = """
import sys, time, torch
from pathlib import Path
import psutil
from tandem.engine.rank_memory import rank_caches
from tandem.engine.ranks import start_model
from tandem.kv.cache import CacheLayout
import msgspec
layout = msgspec.json.decode(sys.argv[2], type=CacheLayout)
model = start_model(Path(sys.argv[1]), rank_caches(layout, 8, torch.device("cpu"), 2))
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(60)
"""


def test_ranks_die_with_the_first_one(folder: Path) -> None:
    command = [sys.executable, "-c", LEADER, str(folder), msgspec.json.encode(LAYOUT).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        follower = psutil.Process(int(leader.stdout.readline()))
        leader.kill()
        follower.wait(SOON)


def test_models_are_refused_before_anything_starts(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--tensor-parallel-size 3: must divide the model.s 2 key/value heads"):
        caches(3)
    with pytest.raises(UsageError, match=r"--tensor-parallel-size 2: .* on meta; use 1"):
        rank_caches(LAYOUT, BLOCKS, torch.device("meta"), 2)
    odd = [KVCache(LAYOUT, BLOCKS, CPU) for _ in range(3)]
    with pytest.raises(UsageError, match="--tensor-parallel-size 3: attention heads 4 cannot be divided"):
        start_model(folder, odd)
    assert children() == []


def test_a_process_that_cannot_be_started_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def popen(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        if started:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        started.append(original(*arguments, **options))  # type: ignore[call-overload]
        return started[0]

    original = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(ProcessError, match=r"--tensor-parallel-size 4: .*\(Cannot allocate memory\)"):
        start_model(folder, caches(4))
    assert children() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are devices")
def test_too_few_devices_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--tensor-parallel-size 2: only 0 devices are visible"):
        rank_caches(LAYOUT, BLOCKS, torch.device("cuda"), 2)


def test_a_device_needs_no_more_than_handles_on_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """How torch_npu names its own; devices that cannot compute stand in for Ascend's."""
    monkeypatch.setattr(torch.UntypedStorage, "_share_privateuseone_", None, raising=False)
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(device_count=lambda: 3))
    device = torch.device("privateuseone")
    assert rank_memory._devices(device, 2) == [torch.device("privateuseone", rank) for rank in range(2)]
    with pytest.raises(UsageError, match="--tensor-parallel-size 4: only 3 devices are visible"):
        rank_memory._devices(device, 4)


def test_a_devices_memory_is_reached_by_its_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU plays the device, and its storage's place in a list the handle."""
    there: list[torch.UntypedStorage] = []

    def share(storage: torch.UntypedStorage) -> tuple:
        there.append(storage)
        return len(there) - 1, b"handle", storage.nbytes(), 0, b"counter", 0, b"event", False

    monkeypatch.setattr(torch.UntypedStorage, "_share_cpu_", share, raising=False)
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cpu", lambda place, *_: there[place], raising=False)
    data = torch.zeros(BLOCKS * LAYOUT.bytes_per_block, dtype=torch.uint8)
    own = KVCache(LAYOUT, BLOCKS, CPU, Memory(data, None))
    sent = msgspec.msgpack.encode(rank_memory.shared(own))
    other = rank_memory.opened(msgspec.msgpack.decode(sent, type=rank_memory.Shared), LAYOUT, BLOCKS, CPU)
    own.blocks[3] = 1.5
    torch.testing.assert_close(other.blocks, own.blocks, rtol=0, atol=0)


def test_threads_are_shared_unless_the_user_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._threads(2) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert module._threads(2) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert module._threads(10**6) == 1
