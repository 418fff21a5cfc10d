"""Training steps beside Hugging Face's Trainer: the same model, samples and optimizer, in one process, by turns.

`text`: rows of equal length. `instructions`: conversations of unequal length, of which the answers are learnt; Trainer
pads each batch to its longest (DataCollatorForSeq2Seq), tandem packs several into a row. Lengths are log-normal, as
those of Alpaca's rows are, with --median and --sigma, cut at --length; each batch of Trainer's holds --batch of them,
each of ours about as many tokens as --batch rows of --length. Counted are real tokens, padding is none.

Trainer goes through all samples once, because a few batches may hold half or twice the padding of the others. After
each of its steps ours are taken until as many tokens have gone through them, so that a machine that slows down slows
both. The first step of each is left out. Medians over --rounds such passes.

    python benchmarks/training.py                         # needs transformers and accelerate; some ten minutes
    python benchmarks/training.py --case instructions --rounds 3 --json
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
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
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


class Watch:
    """Counts real tokens and the seconds that they take."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.tokens, self.seconds, self.began = 0, 0.0, 0.0

    def start(self) -> None:
        """Begin to count."""
        self.began = self.clock()

    def stop(self, tokens: int) -> None:
        """Count what came since the start."""
        self.seconds += self.clock() - self.began
        self.tokens += tokens

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Ours:
    """tandem's trainer, step by step."""

    def __init__(self, folder: Path, batches: TokenBatches | ConversationBatches, options: argparse.Namespace) -> None:
        model = load(folder, torch.device("cpu"), torch.float32).unfreeze()
        config = StageConfig(
            steps=10**6, seq_length=options.length, global_batch=options.batch, micro_batch=options.batch,
            warmup_steps=0, lr=LR, min_lr=LR, schedule="constant", weight_decay=DECAY, beta2=0.999, clip=CLIP,
            save_every=10**6,
        )  # fmt: skip
        self.batches, self.batch = batches, options.batch
        self.trainer = loop.Trainer(LossModel(model), self.batches, config, CheckpointStore(folder / "none", {}, 1))
        model.train()
        self.trainer.step()

    def until(self, tokens: int, watch: Watch) -> None:
        """Take steps until the watch has counted so many tokens."""
        while watch.tokens < tokens:
            batch = self.batches.at(self.trainer.state.consumed_samples, self.batch)
            watch.start()
            self.trainer.step()
            watch.stop(real_tokens(batch))


class Turns(TrainerCallback):
    """Times Trainer's steps, with the making of their batches, and has ours taken in between."""

    def __init__(self, ours: Ours, tokens: list[int], clock: Callable[[], float]) -> None:
        self.ours, self.tokens = ours, tokens
        self.own, self.other = Watch(clock), Watch(clock)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by Trainer after its update; its first step, in which it prepares itself, is not counted."""
        if state.global_step > 1:
            self.other.stop(self.tokens[state.global_step - 1])
        self.ours.until(self.other.tokens, self.own)
        self.other.start()


class Theirs:
    """transformers' Trainer."""

    def __init__(self, folder: Path, samples: list[Sample], options: argparse.Namespace) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.samples, self.batch, self.folder = samples, options.batch, folder
        lengths = [len(sample.ids) for sample in samples]
        self.tokens = [sum(lengths[n : n + self.batch]) for n in range(0, len(samples), self.batch)]

    def once(self, turns: Turns) -> None:
        """Go through all samples."""
        arguments = TrainingArguments(
            output_dir=str(self.folder / "trainer"), num_train_epochs=1, per_device_train_batch_size=self.batch,
            learning_rate=LR, weight_decay=DECAY, max_grad_norm=CLIP, lr_scheduler_type="constant", save_strategy="no",
            logging_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )  # fmt: skip
        rows = Rows(self.samples)
        Trainer(model=self.model, args=arguments, train_dataset=rows, data_collator=padded, callbacks=[turns]).train()


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
    rounds = [Turns(ours, theirs.tokens, options.clock) for _ in range(options.rounds)]
    for turns in rounds:
        theirs.once(turns)
    return {
        "tandem tokens/s": statistics.median(turns.own.rate for turns in rounds),
        "Trainer tokens/s": statistics.median(turns.other.rate for turns in rounds),
        "tandem / Trainer": statistics.median(turns.own.rate / turns.other.rate for turns in rounds),
    }


def gigaflops() -> float:
    """What this machine multiplies matrices with."""
    x = torch.randn(1024, 1024)
    times = []
    for _ in range(100):
        began = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - began)
    return float(2 * 1024**3 / statistics.median(times) / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="Trainer's default")
    parser.add_argument("--samples", type=int, default=600, help="conversations; a quarter as many texts")
    parser.add_argument("--rounds", type=int, default=1)
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
        "text": lambda: texts(options.samples // 4, options.length),
        "instructions": lambda: instructions(options.samples, options.length, options.median, options.sigma),
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
