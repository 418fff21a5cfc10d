"""Training steps beside Hugging Face's Trainer: the same model, samples and optimizer, in one process, by turns.

`text`: rows of equal length. `instructions`: conversations of unequal length, of which the answers are learnt; Trainer
pads each batch to its longest (DataCollatorForSeq2Seq), tandem packs several into a row. Lengths are log-normal, as
those of Alpaca's rows are, with --median and --sigma, cut at --length; each batch of Trainer's holds --batch of them,
each of ours about as many tokens as --batch rows of --length. Counted are real tokens, padding is none.

The first step of each is left out; medians over the rounds' ratios.

    python benchmarks/training.py                         # needs transformers and accelerate
    python benchmarks/training.py --rounds 5 --json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.position import Rope
from tandem.model.folder import load, save
from tandem.model.random_weights import random_decoder
from tandem.training import loop
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.loss import LossModel
from tandem.training.data.batch import Batch
from tandem.training.data.batches import TokenBatches
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.indexed import IndexedWriter
from tandem.training.data.labels import IGNORED
from tandem.training.data.open import open_conversations, open_texts
from tandem.training.data.output import packed_prefix, text_prefix
from tandem.training.settings.config import StageConfig

MODEL = ModelConfig(  # 27.8 million parameters
    family="llama",
    vocab_size=4096,
    hidden_size=512,
    layers=8,
    attention=GQA(heads=8, kv_heads=4, head_dim=64),
    position=Rope(theta=1e4, dims=64),
    feed_forward=SwiGLU(size=1408),
    norm_eps=1e-6,
    max_position=4096,
)
LR, DECAY, CLIP = 1e-4, 0.1, 1.0


@dataclass(frozen=True)
class Sample:
    """One text or conversation."""

    ids: np.ndarray
    labels: np.ndarray
    """The ids, or `IGNORED` where the token is not learnt."""


def texts(count: int, length: int) -> list[Sample]:
    draw = np.random.default_rng(0)
    rows = draw.integers(3, MODEL.vocab_size, (count, length))
    return [Sample(row, row) for row in rows]


def instructions(count: int, length: int, median: float, sigma: float) -> list[Sample]:
    """A third of each is the prompt."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(median), sigma, count), 8, length).astype(int)
    rows = [draw.integers(3, MODEL.vocab_size, n) for n in lengths]
    return [Sample(row, np.where(np.arange(len(row)) < len(row) // 3, IGNORED, row)) for row in rows]


def prepared(samples: list[Sample], prefix: Path, length: int) -> TokenBatches | ConversationBatches:
    """Batches of tandem, of files as `tandem data prepare` leaves them; texts end to end, conversations packed."""
    if all(sample.labels is sample.ids for sample in samples):
        write(text_prefix(prefix), [sample.ids for sample in samples])
        return open_texts(prefix, seq_length=length, seed=0)
    write(packed_prefix(prefix, "labels"), [sample.labels for sample in samples])
    write(packed_prefix(prefix, "input_ids"), [sample.ids for sample in samples])
    return open_conversations(prefix, seq_length=length, seed=0, pad=0)


def write(pair: Path, rows: list[np.ndarray]) -> None:
    with IndexedWriter(pair, np.int32) as writer:
        for row in rows:
            writer.add(row, [len(row)])


def real_tokens(batch: Batch) -> int:
    """Tokens that are not padding."""
    return int((batch.segments > 0).sum()) if batch.segments is not None else batch.tokens.numel()


class Ours:
    """tandem's trainer, step by step."""

    def __init__(self, folder: Path, batches: TokenBatches | ConversationBatches, options: argparse.Namespace) -> None:
        model = load(folder, torch.device("cpu"), torch.float32).unfreeze()
        config = StageConfig(
            steps=10**6, seq_length=options.length, global_batch=options.batch, micro_batch=options.batch,
            warmup_steps=0, lr=LR, min_lr=LR, schedule="constant", weight_decay=DECAY, beta2=0.999, clip=CLIP,
            save_every=10**6,
        )  # fmt: skip
        self.batches = batches
        self.trainer = loop.Trainer(LossModel(model), self.batches, config, CheckpointStore(folder / "none", {}, 1))
        self.batch, self.clock = options.batch, options.clock
        model.train()

    def rate(self, steps: int) -> float:
        """Real tokens per second."""
        position = self.trainer.state.consumed_samples
        began = self.clock()
        for _ in range(steps):
            self.trainer.step()
        seconds = self.clock() - began
        return real_tokens(self.batches.at(position, steps * self.batch)) / seconds


class Clock(TrainerCallback):
    """When Trainer's steps end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer."""
        self.ends.append(self.clock())


class Theirs:
    """transformers' Trainer."""

    def __init__(self, folder: Path, samples: list[Sample], options: argparse.Namespace) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.samples, self.batch, self.folder, self.clock = samples, options.batch, folder, options.clock
        self.done = 0

    def rate(self, steps: int) -> float:
        """Real tokens per second; the first step, in which Trainer prepares itself, is not counted."""
        count = (steps + 1) * self.batch
        mine = [self.samples[(self.done + n) % len(self.samples)] for n in range(count)]
        self.done += count
        arguments = TrainingArguments(
            output_dir=str(self.folder / "trainer"), max_steps=steps + 1, per_device_train_batch_size=self.batch,
            learning_rate=LR, weight_decay=DECAY, max_grad_norm=CLIP, lr_scheduler_type="constant", save_strategy="no",
            logging_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )  # fmt: skip
        clock = Clock(self.clock)
        trainer = Trainer(
            model=self.model, args=arguments, train_dataset=Rows(mine), data_collator=padded, callbacks=[clock]
        )
        trainer.train()
        real = sum(len(sample.ids) for sample in mine[self.batch :])
        return real / (clock.ends[-1] - clock.ends[0])


class Rows(Dataset):  # type: ignore[type-arg]
    """Samples as Trainer takes them."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.samples[index]
        return {"input_ids": torch.from_numpy(sample.ids), "labels": torch.from_numpy(sample.labels)}


def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What DataCollatorForSeq2Seq makes of them, to the longest row; without a mask where nothing is padded."""
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad([row["input_ids"] for row in rows], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
    }
    mask = pad([torch.ones_like(row["labels"]) for row in rows], batch_first=True)
    return batch if bool(mask.all()) else batch | {"attention_mask": mask}


def measure(folder: Path, name: str, samples: list[Sample], options: argparse.Namespace) -> dict[str, float]:
    batches = prepared(samples, folder.with_name(name), options.length)
    ours, theirs = Ours(folder, batches, options), Theirs(folder, samples, options)
    ours.rate(1)
    rates = [(ours.rate(options.steps), theirs.rate(options.steps)) for _ in range(options.rounds)]
    return {
        "tandem tokens/s": statistics.median(one for one, _ in rates),
        "Trainer tokens/s": statistics.median(other for _, other in rates),
        "tandem / Trainer": statistics.median(one / other for one, other in rates),
    }


def gigaflops() -> float:
    """What this machine multiplies matrices with."""
    x = torch.randn(1024, 1024)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - began)
    return float(2 * 1024**3 / statistics.median(times) / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="Trainer's default")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--median", type=float, default=100)
    parser.add_argument("--sigma", type=float, default=0.8)
    parser.add_argument("--case", choices=["text", "instructions"], action="append")
    parser.add_argument("--cpu-time", action="store_true", help="of this process, for a shared machine; --threads 1")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    cases = {
        "text": lambda: texts(64, options.length),
        "instructions": lambda: instructions(600, options.length, options.median, options.sigma),
    }
    results: dict[str, Any] = {"GEMM GFLOP/s": gigaflops(), "threads": options.threads, "cases": {}}
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "model"
        save(random_decoder(MODEL, torch.float32, 0), folder, GenerationDefaults(), {})
        for name in options.case or cases:
            results["cases"][name] = measure(folder, name, cases[name](), options)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{results['GEMM GFLOP/s']:.0f} GFLOP/s in matrix products, {options.threads} threads")
    for name, row in results["cases"].items():
        print(f"{name:14}" + "".join(f"  {title} {value:,.2f}" for title, value in row.items()))


if __name__ == "__main__":
    main()
