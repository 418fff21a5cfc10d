"""A decoder shared out to ranks computes what the whole one does, whatever family it is of and however it is loaded."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lockstep import Table, ThreadGroup, in_lockstep
from safetensors.torch import load_file
from torch import Tensor

from tandem.catalogue.config import ModelConfig, SwiGLU
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.models import MODELS
from tandem.catalogue.shapes import parameter_shapes
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.errors import UsageError
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.paged import Chunk, PagedContext
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.folder import load, own_dtype, save
from tandem.model.fp8_folder import write_quantised
from tandem.model.random_weights import random_decoder
from tandem.model.sharding import cuts, narrowed, vocabulary_part

CPU = torch.device("cpu")
GLM_HF = replace(MODELS["glm4-9b"].config, family="glm", norm_weight_wide=False)
NAMES = (
    "llama3.2-1b", "yi-6b", "mistral-7b", "mixtral-8x7b", "qwen-7b", "qwen2.5-0.5b", "glm3-6b", "glm4-9b",
    "baichuan2-13b", "deepseek-v3",
)  # fmt: skip
DEEPSEEK = MODELS["deepseek-v3"].config
CONFIGS = {name: MODELS[name].config for name in NAMES} | {
    "glm-hf": replace(MODELS["glm4-9b"].config, family="glm", norm_weight_wide=False),
    "deepseek without q_rank": replace(DEEPSEEK, attention=replace(DEEPSEEK.attention, q_rank=None)),
}
VOCABULARY = 203
"""Neither two nor four ranks can share it evenly."""


def small(name: str, ranks: int) -> ModelConfig:
    """With a number of heads that so many ranks can share."""
    config = shrink(CONFIGS[name], SmallShape(layers=3, vocab=VOCABULARY))
    if config.attention.heads % ranks == 0:
        return config
    return shrink(CONFIGS[name], SmallShape(layers=3, vocab=VOCABULARY, heads=2 * config.attention.heads))


def saved(config: ModelConfig, folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    decoder = random_decoder(config, dtype, 0)
    save(decoder, folder, GenerationDefaults(), {})
    return decoder


@torch.inference_mode()
def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder(tokens, CausalContext(*tokens.shape, CPU))


@torch.inference_mode()
def paged_logits(decoder: Decoder, layout: CacheLayout, tokens: Tensor) -> Tensor:
    """A prompt in two pieces and one more token, out of a paged cache."""
    cache = KVCache(layout, 12, CPU)
    steps = [(0, 100), (100, 49), (149, 1)]
    chunks = [Chunk(blocks=list(range(10)), start=start, count=count, prompt=149) for start, count in steps]
    return torch.cat([decoder(tokens[c.start : c.stop], PagedContext(cache, [c])) for c in chunks])


def assert_alike(found: list[Tensor], expected: Tensor) -> None:
    for one in found:
        assert torch.equal(one, found[0]), "ranks differ"
        assert (one - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_ranks_compute_what_one_process_does(name: str, ranks: int, tmp_path: Path) -> None:
    config = small(name, ranks)
    whole = saved(config, tmp_path / "m")
    tokens = (torch.arange(150) * 17 + 5) % config.vocab_size
    layout = CacheLayout.of(config, "float32", 16)

    def work(group: ThreadGroup) -> tuple[Tensor, Tensor]:
        decoder = load(tmp_path / "m", CPU, group=group)
        assert decoder.config == config
        return logits(decoder, tokens[None]), paged_logits(decoder, layout.of_rank(group.rank, ranks), tokens)

    full, paged = zip(*in_lockstep(ranks, work), strict=True)
    assert_alike(list(full), logits(whole, tokens[None]))
    assert_alike(list(paged), paged_logits(whole, layout, tokens))


def into_bin(folder: Path, other: Path) -> None:
    other.mkdir()
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(load_file(folder / "model.safetensors"), other / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "form", "dtype"),
    [
        ("glm3-6b", "safetensors", torch.float32),
        ("glm3-6b", "bin", torch.bfloat16),
        ("mixtral-8x7b", "bin", torch.float32),
        ("deepseek-v3", "fp8", torch.float32),
        ("deepseek-v3", "fp8", torch.bfloat16),
    ],
)
def test_a_rank_loads_its_part_from_every_layout(name: str, form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = small(name, 4)
    saved(config, tmp_path / "safetensors")
    into_bin(tmp_path / "safetensors", tmp_path / "bin")
    if form == "fp8":
        write_quantised(tmp_path / "safetensors", tmp_path / "fp8")
    whole = dict(load(tmp_path / form, CPU, dtype).named_parameters())
    for rank in range(4):
        parts = cuts(config, rank, 4)
        own = dict(load(tmp_path / form, CPU, dtype, group=ThreadGroup(rank, 4, Table(4))).named_parameters())
        assert own.keys() == whole.keys()
        for parameter, tensor in own.items():
            cut = parts.get(parameter)
            expected = whole[parameter]
            if cut is not None:
                expected = expected.narrow(cut.dim, cut.places.start, len(cut.places))
            assert torch.equal(tensor, expected), parameter


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_parts_are_the_whole(name: str, ranks: int) -> None:
    """Every place of every cut dimension is somebody's, and as many times as another."""
    config = small(name, ranks)
    parts = [cuts(config, rank, ranks) for rank in range(ranks)]
    for parameter, shape in parameter_shapes(config).items():
        mine = [part[parameter] for part in parts if parameter in part]
        if not mine:
            assert parameter.endswith(("norm.weight", "router.weight", "router.bias", "_down.weight", ".k.weight",
                                       ".v.weight", ".k.bias", ".v.bias")), parameter  # fmt: skip
            continue
        held = sorted(place for cut in mine for place in cut.places)
        copies = len(held) // shape[mine[0].dim]
        assert held == sorted(list(range(shape[mine[0].dim])) * copies)
        assert copies == 1 or parameter.endswith((".k.weight", ".v.weight", ".k.bias", ".v.bias"))


def test_one_rank_is_the_whole_model() -> None:
    for name in CONFIGS:
        config = small(name, 1)
        assert narrowed(config, 0, 1) == config
        assert cuts(config, 0, 1) == {}


@pytest.mark.parametrize(
    ("name", "ranks", "message"),
    [
        (
            "llama3.2-1b",
            3,
            "3: attention heads 4 cannot be divided by it; this model allows 1, 2, 4",
        ),
        ("mixtral-8x7b", 5, "--tensor-parallel-size 5: attention heads 4 cannot be divided"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_by_name(name: str, ranks: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        narrowed(small(name, 1), 0, ranks)


def test_sizes_are_refused_by_name() -> None:
    config = small("llama3.2-1b", 1)
    inner = replace(config, feed_forward=SwiGLU(size=30))
    with pytest.raises(UsageError, match="--tensor-parallel-size 4: feed-forward size 30 cannot be divided by it"):
        narrowed(inner, 0, 4)
    with pytest.raises(UsageError, match="--tensor-parallel-size 4: a vocabulary of 5 is too small"):
        narrowed(replace(config, vocab_size=5), 0, 4)
    with pytest.raises(UsageError, match="key/value heads"):
        narrowed(replace(config, attention=replace(config.attention, heads=12, kv_heads=3)), 0, 2)


def test_uneven_vocabularies_leave_the_last_rank_less() -> None:
    assert [vocabulary_part(51, rank, 2) for rank in range(2)] == [range(26), range(26, 51)]
    assert [len(vocabulary_part(203, rank, 4)) for rank in range(4)] == [51, 51, 51, 50]


def test_own_dtype_is_what_is_loaded(tmp_path: Path) -> None:
    saved(small("llama3.2-1b", 1), tmp_path / "m")
    assert own_dtype(tmp_path / "m") == load(tmp_path / "m", CPU).embedding.weight.dtype


class EndError(Exception):
    pass


def test_loading_ends_with_what_the_check_raises(tmp_path: Path) -> None:
    saved(small("llama3.2-1b", 1), tmp_path / "m")

    def check() -> None:
        raise EndError

    with pytest.raises(EndError):
        load(tmp_path / "m", CPU, check=check)


PEAK = """
import gc, sys
from pathlib import Path
import torch
from tandem.model.folder import load
from tandem.parallel.collectives import ProcessGroup

def resident(field):
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))

for folder in sys.argv[1:]:
    for rank in (1, 3):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        decoder = load(Path(folder), torch.device("cpu"), group=ProcessGroup(torch.device("cpu"), rank, 4))
        print(resident("VmHWM") - before, sum(p.numel() * p.itemsize for p in decoder.parameters()))
        del decoder
"""
SLACK = 16 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_rank_needs_the_memory_of_its_part(tmp_path: Path) -> None:
    config = shrink(CONFIGS["llama3.2-1b"], SmallShape(layers=1, hidden=1024, heads=16, inner=8192, vocab=16384))
    whole = saved(config, tmp_path / "whole", torch.bfloat16)
    into_bin(tmp_path / "whole", tmp_path / "bin")
    size = sum(p.numel() * p.itemsize for p in whole.parameters())
    folders = [str(tmp_path / "whole"), str(tmp_path / "bin")]
    done = subprocess.run([sys.executable, "-c", PEAK, *folders], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        peak, part = map(int, line.split())
        assert part < 0.26 * size
        assert 0.9 * part < peak < part + SLACK
