"""The memory plan beside the peak of a process that takes real training steps (`ru_maxrss`).

Each model trains three steps in a process of its own, with one thread, so that the peak is its alone.

    python benchmarks/training_memory.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import parse_shape, shrink
from tandem.model.decoder import Decoder
from tandem.training.adapters.lora import apply_lora
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.loss import LossModel
from tandem.training.compute.recompute import apply_recompute
from tandem.training.data.batch import Batch
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
        return ", ".join([f"{self.name}, {self.shape}; {footing.micro_batch} × {footing.seq_length}", *odd])


WIDE = "layers=8,hidden=512,vocab=16000"
CASES = [
    Case("llama3-8b", WIDE, Footing(seq_length=512, micro_batch=4)),
    Case("llama3-8b", WIDE, Footing(seq_length=512, micro_batch=4, recompute="full")),
    Case("llama3-8b", WIDE, Footing(seq_length=512, micro_batch=4, lora=LoraConfig())),
    Case("qwen2-7b", "layers=4,hidden=768,vocab=32000", Footing(seq_length=256, micro_batches=2)),
    Case(
        "baichuan2-13b", "layers=6,hidden=480,vocab=8000", Footing(seq_length=512, micro_batch=2, precision="bfloat16")
    ),
    Case("mixtral-8x7b", "layers=4,hidden=256,vocab=8000", Footing(seq_length=256, micro_batch=2)),
    Case("llama2-7b", "layers=4,hidden=1024,vocab=32000", Footing(seq_length=256)),
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


def peak(case: Case) -> int:
    """Bytes of this process when it had most, after real steps."""
    torch.set_num_threads(1)
    config, footing = case.config, case.footing
    decoder = Decoder(config)
    decoder.initialise(0)
    if footing.lora is not None:
        apply_lora(decoder.unfreeze(), footing.lora, 0)
    apply_recompute(decoder, footing.recompute)
    stage = StageConfig(
        steps=STEPS, seq_length=footing.seq_length, global_batch=footing.micro_batch * footing.micro_batches,
        micro_batch=footing.micro_batch, lr=1e-4, min_lr=1e-5, warmup_steps=0, save_every=10**6,
        precision=footing.precision,
    )  # fmt: skip
    batches = Texts(config.vocab_size, footing.seq_length)
    trainer = Trainer(LossModel(decoder).train(), batches, stage, CheckpointStore(Path("none"), {}, 1))
    for _ in range(STEPS):
        trainer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        print(peak(CASES[given.case]))
        return
    print("| model | measured, MiB | without `heap` | with it |\n|---|--:|--:|--:|")
    for number, case in enumerate(CASES):
        done = subprocess.run(
            [sys.executable, __file__, "--case", str(number)], capture_output=True, text=True, check=True
        )
        measured, plan = int(done.stdout), estimate(case.config, case.footing)
        planned = (plan.total - plan.heap, plan.total)
        shown = " | ".join(f"{one / MIB:,.0f} ({one / measured - 1:+.0%})" for one in planned)
        print(f"| {case.title} | {measured / MIB:,.0f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
