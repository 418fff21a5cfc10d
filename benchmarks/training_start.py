"""Host memory of every rank while a model comes in and while it goes out, beside the rank's own share.

A random Llama in bfloat16 is loaded in fp32 by 1, 2 and 3 ranks, whole and with adapters, and exported again, with no
step between. Each rank is a process of its own and tells the highest it had over what it has before, from /proc.

    python benchmarks/training_start.py
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from tandem.catalogue.arithmetic import parameters
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import parse_shape, shrink
from tandem.model.decoder import Decoder
from tandem.model.families import translate
from tandem.model.folder import load_own, save, save_read
from tandem.model.random_weights import random_decoder
from tandem.model.skeleton import bare
from tandem.parallel.place import Place
from tandem.parallel.world import joined
from tandem.training.adapters.lora import apply_lora, fill_factors, initial_factors
from tandem.training.compute.gathering import Gathering
from tandem.training.compute.loss import LossModel
from tandem.training.compute.parallelize import materialise, parallelize
from tandem.training.launch.ranks import Hosts, run_ranks
from tandem.training.settings.config import LoraConfig

CPU = torch.device("cpu")
SHAPE = "layers=8,hidden=768,vocab=32000"
MB = 10**6


def resident(field: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at its highest since `clear`."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def clear() -> None:
    """Count the highest from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(folder: Path, out: Path, *, lora: bool) -> None:
    """One rank's part; its numbers go into a file."""
    torch.set_num_threads(1)
    place = Place.told(os.environ) or Place()
    with joined(place, CPU) as world:
        _, config, _ = translate(folder)
        decoder = bare(config)
        if lora:
            apply_lora(decoder, LoraConfig(), 0)
        model = LossModel(decoder)
        parallelize(model, world, "float32")
        clear()
        before = resident("VmRSS")
        materialise(model, CPU, lambda parts: fill(parts, folder))
        start, held = resident("VmHWM") - before, resident("VmRSS") - before
        clear()
        gathering = Gathering(decoder, world)
        target = out / "model" if world.leads else None
        save_read(config, torch.bfloat16, gathering.merged, target, GenerationDefaults(), {})
        numbers = (start, held, resident("VmHWM") - before)
    (out / f"{place.rank}.txt").write_text(" | ".join(f"{number / MB:,.0f}" for number in numbers))


def fill(decoder: Decoder, folder: Path) -> None:
    """As a run does."""
    load_own(decoder, folder)
    fill_factors(decoder, initial_factors(decoder, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", nargs=3, metavar=("FOLDER", "OUT", "LORA"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        measure(Path(given.rank[0]), Path(given.rank[1]), lora=given.rank[2] == "1")
        return
    config = shrink(MODELS["llama3-8b"].config, parse_shape(SHAPE))
    print(f"{parameters(config) * 4 / MB:,.0f} MB in fp32, {SHAPE}\n")
    print("| ranks | | rank | share, MB | most while it comes in | held then | most while it goes out |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save(random_decoder(config, torch.bfloat16, 0), folder, GenerationDefaults(), {})
        for lora in "01":
            for ranks in (1, 2, 3):
                out = Path(scratch) / f"{ranks}-{lora}"
                out.mkdir()
                command = [sys.executable, __file__, "--rank", str(folder), str(out), lora]
                run_ranks(command, Hosts(ranks=ranks), out)
                for rank in range(ranks):
                    share, numbers = parameters(config) * 4 / ranks / MB, (out / f"{rank}.txt").read_text()
                    print(f"| {ranks} | {'LoRA' * int(lora)} | {rank} | {share:,.0f} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
