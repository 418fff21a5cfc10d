"""The memory plan beside the peak of processes that take real training steps (`VmHWM`).

Each model begins as a run does and trains three steps, in one process for each rank, with one thread. Of several ranks
the one with the highest peak is told.

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --case 2 --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import parse_shape, shrink
from tandem.model.decoder import Decoder
from tandem.model.skeleton import bare
from tandem.parallel.place import Place
from tandem.parallel.rows import own_part
from tandem.parallel.world import World, joined
from tandem.training.adapters.lora import apply_lora, fill_factors, initial_factors
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.loss import LossModel
from tandem.training.compute.parallelize import materialise, parallelize
from tandem.training.compute.recompute import apply_recompute
from tandem.training.data.batch import Batch
from tandem.training.launch.ranks import Hosts, run_ranks
from tandem.training.loop import Trainer
from tandem.training.plan.footing import Footing
from tandem.training.plan.memory import estimate
from tandem.training.settings.config import LoraConfig, StageConfig

MIB = 2**20
STEPS = 3


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    name: str
    shape: str
    footing: Footing

    @property
    def config(self) -> ModelConfig:
        """The model in this shape."""
        return shrink(MODELS[self.name].config, parse_shape(self.shape))

    @property
    def title(self) -> str:
        """In a word or two."""
        footing = self.footing
        odd = [footing.precision] * (footing.precision != "float32") + ["LoRA"] * (footing.lora is not None)
        odd += [f"recompute {footing.recompute}"] * (footing.recompute != "none")
        odd += [f"{footing.micro_batches} micro-batches"] * (footing.micro_batches > 1)
        odd += [f"{footing.ranks} ranks"] * (footing.ranks > 1)
        return ", ".join([f"{self.name}, {self.shape}; {footing.micro_batch} × {footing.seq_length}", *odd])


WIDE = "layers=8,hidden=512,vocab=16000"
FOUR = Footing(seq_length=512, micro_batch=4)
LORA = replace(FOUR, lora=LoraConfig())
CASES = [
    Case("llama3-8b", WIDE, FOUR),
    Case("llama3-8b", WIDE, replace(FOUR, recompute="full")),
    Case("llama3-8b", WIDE, LORA),
    Case("llama3-8b", WIDE, replace(LORA, recompute="full")),
    Case("llama3-8b", WIDE, replace(LORA, precision="bfloat16")),
    Case("qwen2-7b", "layers=4,hidden=768,vocab=32000", Footing(seq_length=256, micro_batches=2)),
    Case("qwen2-7b", "layers=4,hidden=768,vocab=32000", Footing(seq_length=512, micro_batch=2, lora=LoraConfig())),
    Case(
        "baichuan2-13b", "layers=6,hidden=480,vocab=8000", Footing(seq_length=512, micro_batch=2, precision="bfloat16")
    ),
    Case("mixtral-8x7b", "layers=4,hidden=256,vocab=8000", Footing(seq_length=256, micro_batch=2)),
    Case("llama2-7b", "layers=4,hidden=1024,vocab=32000", Footing(seq_length=256)),
    Case("llama2-7b", "layers=4,hidden=1024,vocab=32000", Footing(seq_length=256, ranks=2)),
    Case("llama2-7b", "layers=4,hidden=1024,vocab=32000", Footing(seq_length=256, ranks=3)),
    Case("llama3-8b", WIDE, replace(FOUR, ranks=2)),
    Case("llama3-8b", WIDE, replace(LORA, ranks=2)),
    Case("llama3-8b", WIDE, replace(LORA, ranks=3)),
]


class Texts:
    """Rows of one text each."""

    def __init__(self, vocab_size: int, length: int) -> None:
        self._vocab_size, self._length = vocab_size, length

    def at(self, position: int, count: int) -> Batch:
        """As `Batches` says."""
        drawn = torch.Generator().manual_seed(position)
        rows = torch.randint(self._vocab_size, (count, self._length + 1), generator=drawn)
        return Batch(tokens=rows[:, :-1], targets=rows[:, 1:])


def measured(case: Case) -> int:
    """Bytes of the rank that had most, after real steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank", str(CASES.index(case)), folder]
        run_ranks(command, Hosts(ranks=case.footing.ranks), Path(folder))
        return max(int(path.read_text()) for path in Path(folder).glob("*.peak"))


def take_steps(case: Case, world: World) -> None:
    """As one of the ranks."""
    footing = case.footing
    decoder = bare(case.config)
    if footing.lora is not None:
        apply_lora(decoder, footing.lora, 0)
    apply_recompute(decoder, footing.recompute)
    model = LossModel(decoder)
    parallelize(model, world, footing.precision)
    materialise(model, world.device, fill)
    stage = StageConfig(
        steps=STEPS, seq_length=footing.seq_length,
        global_batch=footing.micro_batch * footing.micro_batches * footing.ranks, micro_batch=footing.micro_batch,
        lr=1e-4, min_lr=1e-5, warmup_steps=0, save_every=10**6, precision=footing.precision,
    )  # fmt: skip
    batches = Texts(case.config.vocab_size, footing.seq_length)
    trainer = Trainer(model.train(), batches, stage, CheckpointStore(Path("none"), {}, 1), world)
    for _ in range(STEPS):
        trainer.step()


def fill(decoder: Decoder) -> None:
    """Random weights, and adapters' own."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            own_part(parameter).tensor.fill_(0.01)
    fill_factors(decoder, initial_factors(decoder, 0))


def rank(case: Case, folder: Path) -> None:
    """Leave this process's peak in a file."""
    torch.set_num_threads(1)
    with joined(Place.told(os.environ) or Place(), torch.device("cpu")) as world:
        take_steps(case, world)
        # Not ru_maxrss: a new process inherits that of the one that started it.
        status = Path("/proc/self/status").read_text()
        highest = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    (folder / f"{world.rank}.peak").write_text(str(highest))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=int, choices=range(len(CASES)), help="one of the models alone, from 0")
    parser.add_argument("--json", action="store_true", help="bytes, one object for each model")
    parser.add_argument("--rank", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        rank(CASES[int(given.rank[0])], Path(given.rank[1]))
        return
    if not given.json:
        print("| model | measured, MiB | without `heap` | with it |\n|---|--:|--:|--:|")
    for case in CASES if given.case is None else [CASES[given.case]]:
        peak, plan = measured(case), estimate(case.config, case.footing)
        if given.json:
            print(json.dumps({"title": case.title, "measured": peak, "plan": plan.as_json()}), flush=True)
            continue
        planned = (plan.total - plan.heap, plan.total)
        shown = " | ".join(f"{one / MIB:,.0f} ({one / peak - 1:+.0%})" for one in planned)
        print(f"| {case.title} | {peak / MIB:,.0f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
