"""What one decode step costs, by what its sequences hold; beside transformers, whose batch is padded to the longest.

The same random model, the same lengths, one new token for every sequence: all short; the same with one sequence that
is longer and longer; all long. Paged attention pays for the tokens there are: the one long sequence adds its own tokens
and nothing else. A padded batch pays for it as often as there are sequences. Medians over the rounds; both in one
process, by turns.

    python benchmarks/decode.py
    python benchmarks/decode.py --batch 16 --short 256 --long 8192 --json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.position import Rope
from tandem.engine.step import Step, forward
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.paged import Chunk
from tandem.model.decoder import Decoder
from tandem.model.folder import load, save
from tandem.model.random_weights import random_decoder

CPU = torch.device("cpu")
BLOCK = 16
MODEL = ModelConfig(
    family="llama",
    vocab_size=8000,
    hidden_size=1024,
    layers=4,
    attention=GQA(heads=16, kv_heads=4, head_dim=64),
    position=Rope(theta=1e4, dims=64),
    feed_forward=SwiGLU(size=2816),
    norm_eps=1e-5,
    max_position=16384,
)


def paged(decoder: Decoder, lengths: list[int]) -> Callable[[], object]:
    """One step of the engine over sequences of these lengths; what the cache holds does not matter for the time."""
    pool = BlockPool(sum(-(-length // BLOCK) for length in lengths), BLOCK)
    cache = KVCache(CacheLayout.of(MODEL, "float32", BLOCK), pool.count, CPU)
    cache.blocks.zero_()
    tables = [pool.allocate(pool.blocks_for(length)) for length in lengths]
    chunks = [
        Chunk(blocks=table, start=length - 1, count=1, prompt=1) for table, length in zip(tables, lengths, strict=True)
    ]
    step = Step(tokens=[1] * len(lengths), chunks=chunks, rows=list(range(len(lengths))))
    return lambda: forward(decoder, cache, step)


def padded(peer: torch.nn.Module, lengths: list[int]) -> Callable[[], object]:
    """One step of transformers over the same, padded on the left."""
    longest, attention = max(lengths), MODEL.attention
    seen = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])
    shape = (len(lengths), attention.kv_heads, longest - 1, attention.head_dim)
    planes = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(MODEL.layers)]
    tokens, places = torch.ones(len(lengths), 1, dtype=torch.long), torch.tensor(lengths)[:, None] - 1

    @torch.inference_mode()
    def step() -> object:
        cache = DynamicCache(planes)
        return peer(input_ids=tokens, attention_mask=seen, position_ids=places, past_key_values=cache).logits

    return step


def milliseconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1e3


def measure(decoder: Decoder, peer: torch.nn.Module, lengths: list[int], rounds: int) -> dict[str, float]:
    steps = {"tandem": paged(decoder, lengths), "padded": padded(peer, lengths)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()  # to have every page of the caches touched
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(milliseconds(step))
    ours, theirs = (statistics.median(times[name]) for name in ("tandem", "padded"))
    return {
        "tokens held": sum(lengths),
        "longest x batch": max(lengths) * len(lengths),
        "tandem ms": ours,
        "padded ms": theirs,
        "padded / tandem": theirs / ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--short", type=int, default=256)
    parser.add_argument("--long", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        save(random_decoder(MODEL, torch.float32, 0), Path(base) / "model", GenerationDefaults(), {})
        decoder = load(Path(base) / "model", CPU)
        peer = AutoModelForCausalLM.from_pretrained(Path(base) / "model", dtype=torch.float32).eval()
        others = [options.short] * (options.batch - 1)
        steps = [options.long // part for part in (8, 4, 2, 1)]
        cases = {f"one of {longest}": [*others, longest] for longest in (options.short, *steps)}
        cases["all long"] = [options.long] * options.batch
        results = {name: measure(decoder, peer, lengths, options.rounds) for name, lengths in cases.items()}
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "rounds": options.rounds, "cases": results}, indent=2))
        return
    print(f"{'':12}" + "".join(f"{column:>17}" for column in results["all long"]))
    for name, row in results.items():
        print(f"{name:12}" + "".join(f"{value:17.1f}" for value in row.values()))


if __name__ == "__main__":
    main()
