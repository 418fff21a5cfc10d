"""How fast a model folder is loaded, compared with copying the same bytes into fresh memory.

One process measures both by turns, because other work runs on the machine; the numbers are medians over the rounds. The
copy is the least that any loader could do: from tensors that lie in memory into new ones of `torch.empty`, with all of
torch's threads. Loading is `tandem.model.folder.load`, from the files, which are in the page cache, to a decoder that
computes. Memory is fresh for both: nothing that was freed is used again. Rates count the bytes of the loaded model.

    python benchmarks/load.py
    python benchmarks/load.py --folder MODEL --rounds 9 --json
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.position import Rope
from tandem.model.folder import DTYPES, load, save
from tandem.model.random_weights import random_decoder

CPU = torch.device("cpu")
GIB = 2**30
M_MMAP_THRESHOLD = -3


@dataclass(frozen=True)
class Case:
    """One folder, loaded in one dtype."""

    name: str
    folder: Path
    dtype: torch.dtype | None


def model_of(size: int, dtype: torch.dtype) -> ModelConfig:
    """A Llama of about `size` bytes, with matrices as large as those of a model with a billion parameters."""
    hidden, inner, vocab = 2048, 5632, 32000
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 4 + 3 * hidden * inner
    return ModelConfig(
        family="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        layers=max(1, (size // dtype.itemsize - 2 * vocab * hidden) // layer),
        attention=GQA(heads=32, kv_heads=8, head_dim=64),
        position=Rope(theta=1e4, dims=64),
        feed_forward=SwiGLU(size=inner),
        norm_eps=1e-5,
        max_position=2048,
    )


def made(base: Path, size: int) -> list[Case]:
    """Folders of random weights: the two dtypes, and for comparison a conversion, shards and torch's own file."""
    for name in ("float32", "bfloat16"):
        decoder = random_decoder(model_of(size, DTYPES[name]), DTYPES[name], 0)
        save(decoder, base / name, GenerationDefaults(), {})
    save(decoder, base / "sharded", GenerationDefaults(), {}, max_shard_bytes=size // 8)
    (base / "bin").mkdir()
    (base / "bin" / "config.json").write_bytes((base / "bfloat16" / "config.json").read_bytes())
    torch.save(load_file(base / "bfloat16" / "model.safetensors"), base / "bin" / "pytorch_model.bin")
    own = [Case(name, base / name, None) for name in ("float32", "bfloat16", "sharded", "bin")]
    converted = [
        Case("float32 as bfloat16", base / "float32", torch.bfloat16),
        Case("bfloat16 as float32", base / "bfloat16", torch.float32),
    ]
    return own + converted


def copied(sources: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(source).copy_(source) for source in sources]


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    result = act()
    taken = time.perf_counter() - start
    del result
    return taken


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Rates in GiB/s, and their ratio."""
    # Loaded once, which also brings the files into the page cache; then copied to ordinary memory.
    first = time.perf_counter()
    decoder = load(case.folder, CPU, case.dtype)
    first = time.perf_counter() - first
    sources = copied([parameter.detach() for parameter in decoder.parameters()])
    del decoder
    size = sum(source.numel() * source.itemsize for source in sources)
    times: dict[str, list[float]] = {"copy": [], "load": []}
    for _ in range(rounds):
        times["copy"].append(seconds(lambda: copied(sources)))
        times["load"].append(seconds(lambda: load(case.folder, CPU, case.dtype)))
    copy, loading = (statistics.median(times[kind]) for kind in ("copy", "load"))
    return {
        "GiB": size / GIB,
        "copy GiB/s": size / GIB / copy,
        "load GiB/s": size / GIB / loading,
        "ratio": copy / loading,
        "first load s": first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a model folder; without it, random ones are made")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the random ones")
    parser.add_argument("--dtype", choices=list(DTYPES), help="convert --folder to this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # The C library would keep what is freed and hand it out again, which is not fresh.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)
    with tempfile.TemporaryDirectory() as base:
        if options.folder:
            cases = [Case(options.folder.name, options.folder, DTYPES.get(options.dtype))]
        else:
            cases = made(Path(base), int(options.gib * GIB))
        results = {case.name: measure(case, options.rounds) for case in cases}
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "rounds": options.rounds, "cases": results}, indent=2))
        return
    print(f"{'':20}" + "".join(f"{column:>14}" for column in next(iter(results.values()))))
    for name, row in results.items():
        print(f"{name:20}" + "".join(f"{value:14.2f}" for value in row.values()))


if __name__ == "__main__":
    main()
