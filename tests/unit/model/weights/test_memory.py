"""Fresh memory, and the peak of what a process needs while it loads: the model and at most one tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.position import Rope
from tandem.model.folder import DTYPES, load, save
from tandem.model.random_weights import random_decoder
from tandem.model.weights.memory import LARGE, fresh

CONFIG = ModelConfig(
    family="llama",
    vocab_size=16384,
    hidden_size=1024,
    layers=1,
    # Every matrix is large enough for memory of its own, which goes back to the system when it is freed.
    attention=GQA(heads=8, kv_heads=8, head_dim=256),
    position=Rope(theta=1e4, dims=256),
    feed_forward=SwiGLU(size=4096),
    norm_eps=1e-5,
    max_position=64,
)
FORMS, OWN = ("single", "sharded", "bin"), "bfloat16"
SLACK = 16 << 20
"""For modules imported on the way, Python's own objects, threads, and a buffer for each."""
PEAKS = """
import gc, sys
from pathlib import Path
import torch
from tandem.model.folder import DTYPES, load

def resident(field):
    # Not ru_maxrss: a new process inherits that of the one that started it.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))

for argument in sys.argv[1:]:
    folder, dtype = argument.rsplit(":", 1)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on
    before = resident("VmRSS")
    decoder = load(Path(folder), torch.device("cpu"), DTYPES[dtype])
    sizes = [p.numel() * p.itemsize for p in decoder.parameters()]
    print(resident("VmHWM") - before, sum(sizes), max(sizes))
    del decoder
"""


@pytest.mark.parametrize("shape", [(3,), (LARGE // 4, 2), (3, LARGE)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_memory_is_a_tensor_like_any_other(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = fresh(shape, dtype, torch.device("cpu"))
    assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
    tensor.fill_(2)
    assert tensor.clone().float().mean() == 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model of 109 MB in three forms."""
    base = tmp_path_factory.mktemp("memory")
    decoder = random_decoder(CONFIG, DTYPES[OWN], 0)
    save(decoder, base / "single", GenerationDefaults(), {})
    save(decoder, base / "sharded", GenerationDefaults(), {}, max_shard_bytes=50_000_000)
    (base / "bin").mkdir()
    (base / "bin" / "config.json").write_bytes((base / "single" / "config.json").read_bytes())
    torch.save(load_file(base / "single" / "model.safetensors"), base / "bin" / "pytorch_model.bin")
    return base


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_loading_needs_the_model_and_at_most_one_tensor(folders: Path) -> None:
    cases = [f"{folders / form}:{dtype}" for dtype in (OWN, "float32", "float16") for form in FORMS]
    done = subprocess.run([sys.executable, "-c", PEAKS, *cases], capture_output=True, text=True, check=True)
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        growth, model, largest = map(int, line.split())
        print(f"{Path(case).name}: {growth / 1e6:.0f} MB for a model of {model / 1e6:.0f} and {largest / 1e6:.0f}")
        assert 0.95 * model < growth <= model + largest, case
        assert growth <= model + SLACK, case


def test_the_forms_are_the_same_model(folders: Path) -> None:
    single, *others = (load(folders / form, torch.device("cpu")) for form in FORMS)
    for other in others:
        for (name, one), (_, two) in zip(single.named_parameters(), other.named_parameters(), strict=True):
            assert torch.equal(one, two), name
