"""Gradients of every case and losses of twenty steps, of small models of every family, by one rank or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from forked_ranks import forked
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.model.random_weights import random_decoder
from tandem.parallel.place import Place
from tandem.parallel.world import World, joined
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.loss import LossModel
from tandem.training.compute.parallelize import parallelize
from tandem.training.compute.recompute import apply_recompute
from tandem.training.data.batch import Batch
from tandem.training.data.labels import IGNORED
from tandem.training.loop import Trainer
from tandem.training.settings.config import Precision, Recompute, StageConfig

VOCABULARY = 101
LENGTH = 24
GLOBAL_BATCH = 8
"""Rows where each conversation has one of its own; packed, it is half as many."""
STEPS = 20
SPEED = 0.01
"""Of the biases of routers, where they have any."""
CLIP = 0.1
"""Smaller than the norm of every step's gradient."""


@dataclass(frozen=True)
class Case:
    """One way to compute the same."""

    micro_batch: int = 1
    packed: bool = False
    recompute: Recompute = "none"
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        return f"{self.micro_batch}-{'packed' if self.packed else 'padded'}-{self.recompute}-{self.precision}"


CASES = (Case(), Case(2), Case(4), Case(1, packed=True), Case(2, packed=True), Case(2, recompute="full"),
         Case(2, recompute="selective"), Case(1, packed=True, recompute="full"))  # fmt: skip
COURSES = (Case(2), Case(1, packed=True, recompute="full"))
"""Cases of which all steps are taken where time is short."""
ROUNDED = Case(2, precision="bfloat16")


class Conversations:
    """Of unequal lengths, partly learnt; two in a row, or each in its own, padded."""

    def __init__(self, *, packed: bool) -> None:
        self._packed = packed

    def at(self, position: int, count: int) -> Batch:
        rows = [self._row(place) for place in range(position, position + count)]
        tokens, targets, segments = (torch.stack(part) for part in zip(*rows, strict=True))
        return Batch(tokens=tokens, targets=targets, segments=segments)

    def _row(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens, segments = torch.zeros(LENGTH, dtype=torch.long), torch.zeros(LENGTH, dtype=torch.long)
        targets = torch.full((LENGTH,), IGNORED)
        begin = 0
        for number in (2 * place, 2 * place + 1) if self._packed else (place,):
            ids = conversation(number)
            end = begin + len(ids)
            tokens[begin:end], segments[begin:end] = ids, number % 2 + 1
            targets[begin + 2 : end - 1] = ids[3:]  # the first three are a question
            begin = end
        return tokens, targets, segments


def conversation(number: int) -> Tensor:
    """Token ids [5 .. 12]."""
    drawn = torch.Generator().manual_seed(number)
    length = int(torch.randint(5, 13, (), generator=drawn))
    return torch.randint(1, VOCABULARY, (length,), generator=drawn)


def run_on(ranks: int, families: Sequence[str], folder: Path, courses: Sequence[Case] = COURSES) -> dict[str, Tensor]:
    """What `run` finds on so many ranks."""

    def part(place: Place) -> int:
        with joined(place, torch.device("cpu")) as world:
            found = run(families, world, courses)
            if world.leads:
                save_file(found, folder / "found.safetensors")
        return 0

    assert forked(ranks, folder / "meeting", part) == [0] * ranks
    return load_file(folder / "found.safetensors")


def run(families: Sequence[str], world: World, courses: Sequence[Case] = COURSES) -> dict[str, Tensor]:
    """`<family>/<case>/<parameter>` gradients, and of courses `<family>/{losses,norms,balances,loads}/<case>`, and
    `<family>/biases/<case>/<parameter>` after them."""
    found: dict[str, Tensor] = {}
    for family in families:
        for case in (*CASES, ROUNDED):
            trainer = trainer_of(family, case, world)
            trainer.step()  # with a learning rate of 0 for the first: only the gradient is looked at
            for name, parameter in trainer.model.named_parameters():
                if parameter.grad is not None:
                    found[f"{family}/{case.name}/{name}"] = whole(parameter.grad)
        for case in courses:
            trainer = trainer_of(family, case, world, clip=CLIP)
            reports = [trainer.step()[0] for _ in range(STEPS)]
            for name, field in (
                ("losses", "loss"),
                ("norms", "grad_norm"),
                ("balances", "balance"),
                ("loads", "load_max"),
            ):
                numbers = [getattr(report, field) or 0.0 for report in reports if report]
                found[f"{family}/{name}/{case.name}"] = torch.tensor(numbers, dtype=torch.float64)
            for name, parameter in trainer.model.named_parameters():
                if name.endswith("router.bias"):
                    found[f"{family}/biases/{case.name}/{name}"] = parameter.detach().clone()
    return found


def trainer_of(family: str, case: Case, world: World, clip: float = 1e9, balance: float | None = None) -> Trainer:
    """Ready to take steps at a small learning rate; by default unclipped, and balanced as was published."""
    decoder = random_decoder(shrink(MODELS[family].config, SmallShape(layers=2, vocab=VOCABULARY)), torch.float32, 0)
    apply_recompute(decoder.unfreeze(), case.recompute)
    model = LossModel(decoder).train()
    parallelize(model, world, case.precision)
    config = StageConfig(
        steps=STEPS, seq_length=LENGTH, global_batch=GLOBAL_BATCH // 2 if case.packed else GLOBAL_BATCH,
        micro_batch=case.micro_batch, lr=1e-4, min_lr=1e-5, warmup_steps=2, clip=clip, precision=case.precision,
        recompute=case.recompute, save_every=STEPS, balance=balance,
        balance_bias=SPEED if MODELS[family].config.router_biases else None,
    )  # fmt: skip
    store = CheckpointStore(Path(os.devnull), {}, 1, World())  # nothing is saved
    return Trainer(model, Conversations(packed=case.packed), config, store, world)


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
