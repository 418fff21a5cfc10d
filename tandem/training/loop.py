"""The training loop: batches to steps to checkpoints, on one rank or many.

Data order, learning rate and everything else are functions of `TrainState`, so a run that goes on from a checkpoint
takes the same steps, bit for bit on the same ranks with the same number of threads, as one that never stopped.

A step's samples are shared out over the ranks; what any rank must know of all is a sum: of valid targets before the
losses are divided by them, of losses after. So decisions that follow from them are the same everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import astuple, replace
from pathlib import Path

import torch
from torch import Tensor

from tandem.errors import CheckpointError, DataError, TandemError
from tandem.parallel.world import World, named
from tandem.training.checkpoints.state import PROOF_TOLERANCE, Proof, TrainState
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.balance import Balance
from tandem.training.compute.clipping import clip_gradients
from tandem.training.compute.loss import LossModel
from tandem.training.compute.optimizer import build_optimizer, optimizer_tensors
from tandem.training.compute.parallelize import let_go, trained
from tandem.training.compute.precision import computing_in
from tandem.training.compute.schedule import Schedule, set_learning_rate
from tandem.training.data.batch import Batch, Batches
from tandem.training.guard.guard import Guard, Outcome, remember
from tandem.training.guard.hang import HangWatch, Unwatched
from tandem.training.guard.journal import Action
from tandem.training.interruption import between_steps
from tandem.training.progress import Progress, StepLog, StepReport
from tandem.training.settings.config import StageConfig
from tandem.training.watch.meter import Meter
from tandem.training.watch.retaken import Logged, Retaken
from tandem.training.watch.work import Work

SAVING_S = 1800.0
"""Seconds that writing or loading a checkpoint may take beyond those of a step, before a rank is thought to hang."""


class Trainer:
    """One stage of training, on this rank.

    Args:
        model: Trained in place, where its parameters are; already shared out over the ranks (`parallelize`).
        batches: What it learns from; the same on all ranks.
        config: How.
        store: Where its checkpoints are.
        world: The ranks.
        guard: Judges every step before its update; by default one that keeps no file.
    """

    def __init__(
        self,
        model: LossModel,
        batches: Batches,
        config: StageConfig,
        store: CheckpointStore,
        world: World | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.model = model
        self.optimizer = build_optimizer(model, config)
        self.state = TrainState()
        self._batches = batches
        self._config = config
        self._store = store
        self._guard = guard or Guard(config.guard)
        self._world = world or World()
        self._balance = Balance(model.decoder, config.balance)
        self.meter = Meter.of(model.decoder, getattr(torch, config.precision), self._world.ranks)
        self._schedule = Schedule.of(config)
        self._watch: HangWatch | Unwatched = Unwatched()
        self._retaken = Retaken()
        # FSDP computes with rounded copies itself.
        self._dtype = getattr(torch, config.precision) if self._world.mesh is None else torch.float32

    def resume(self, store: CheckpointStore | None = None) -> None:
        """Go on from the latest checkpoint, of another run if one is given; without one, from the beginning.

        The model must make of the samples that the checkpoint names what it made of them when it was written.

        Raises:
            CheckpointError: The checkpoint is damaged, belongs to another run, or is not what it was.
        """
        self.model.train()  # as it was when the checkpoint's loss was taken
        store = store or self._store
        step = store.latest()
        state = TrainState() if step is None else store.load(self._tensors(), step)
        self.state = self._guard.resume(state)
        if state.proof is not None:
            self._check_proof(state.proof, store.folder.path)

    def run(
        self,
        log: StepLog | None,
        progress: Progress,
        watch: HangWatch | Unwatched | None = None,
        retaken: Retaken | None = None,
    ) -> None:
        """Take all steps that are left, with a checkpoint every so often, at the end, and where it is interrupted.

        Args:
            log: Of the rank that leads; None on the others.
            progress: Is told of each step.
            watch: Is told of each step, and of what takes longer than one.
            retaken: Steps that were logged before, which must come to the same.

        Raises:
            CheckpointError: One came to something else, or a checkpoint cannot be written.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the steps until then are in a checkpoint.
        """
        self.model.train()
        self._watch = watch or Unwatched()
        self._retaken = retaken or Retaken()
        try:
            with between_steps() as asked:
                self._run(log, progress, asked)
        except BaseException:
            with suppress(TandemError, OSError):  # the first error is the one to tell
                self._store.wait()
            raise
        self._written()

    def _run(self, log: StepLog | None, progress: Progress, asked: Callable[[], bool]) -> None:
        while self.state.step < self._config.steps:
            report, stops = self.step(asked)
            self._watch.ended(self.state.step)
            if report is None:
                if log is not None:
                    log.go_back(self.state.step)
                continue
            if log is not None:
                log.append(report)
            progress.step(report)
            if (again := self._retaken.after(report.step)) is not None:
                progress.note(again)
            stops = stops or (self._world.mesh is None and asked())
            if stops or self._saves_now():
                with self._watch.allowing(SAVING_S):
                    self._save()
            if stops:
                self._written()
                progress.note(f"stopped after step {self.state.step}; the same command goes on from there")
                raise KeyboardInterrupt

    def _saves_now(self) -> bool:
        return self.state.step % self._config.save_every == 0 or self.state.step == self._config.steps

    def step(self, asked: Callable[[], bool] = lambda: False) -> tuple[StepReport | None, bool]:
        """One optimisation step; returns its report, and whether any rank was asked to stop.

        There is no report where the guard had its batch left out, or the run go back to a checkpoint.

        Raises:
            CheckpointError: It was taken and logged before, and came to something else.
            DataError: A sample holds a token that the model does not know.
            DivergenceError: The loss or the gradient is wild or no number any more; nothing was updated.
            ProcessError: A rank is gone.
        """
        with named(f"step {self.state.step + 1}"):
            return self._step(asked)

    def _step(self, asked: Callable[[], bool]) -> tuple[StepReport | None, bool]:
        began = time.perf_counter()
        lr = self._schedule.at(self.state.step + 1)
        batch = self._share(self.state.consumed_samples, self._config.global_batch)
        work = self._all_work(batch)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad()
        self._balance.begin(work.real, self._world.device)
        parts = self._parts(batch, self._config.global_batch)
        own = backward(self.model, parts, work.learnt, self._dtype, self._balance)
        told = torch.stack([own, self._balance.total, torch.tensor(float(asked()), device=own.device)])
        loss, balance, stops = (float(number) for number in self._world.total(told))
        norm = clip_gradients(self.model.parameters(), self._config.clip)
        outcome = Outcome(loss=loss, grad_norm=norm, samples=self._config.global_batch)
        action = self._guard.decide(self.state, outcome, self._latest)
        if action is not Action.UPDATE:
            self._leave_out(action, outcome)
            return None, bool(stops)
        self._compare(outcome, lr)
        self.optimizer.step()
        load_max = self._balance.loads.settle(self._world, self._config.balance_bias or 0.0)
        report = self._advance(work, outcome, lr, time.perf_counter() - began)
        report = replace(report, balance=balance if self._balance.acts else None, load_max=load_max)
        return report, bool(stops)

    def _compare(self, outcome: Outcome, lr: float) -> None:
        step, position = self.state.step + 1, self.state.consumed_samples + outcome.samples
        loss, norm = outcome.loss, outcome.grad_norm
        self._retaken.compare(Logged(step=step, consumed_samples=position, lr=lr, loss=loss, grad_norm=norm))

    def _written(self) -> None:
        """Wait for the checkpoint that is being written."""
        with self._watch.allowing(SAVING_S):
            self._store.wait()

    def _latest(self) -> int | None:
        self._written()
        return self._store.latest()

    def _leave_out(self, action: Action, outcome: Outcome) -> None:
        """Take up the data behind this batch, at this step or at the checkpoint's."""
        if action is Action.ROLLBACK:
            with self._watch.allowing(SAVING_S):
                self.resume()
        else:
            self.state = replace(self.state, consumed_samples=self.state.consumed_samples + outcome.samples)

    def _share(self, position: int, count: int) -> Batch:
        """This rank's samples of `count` from `position` on; the ranks' numbers differ by one at most."""
        rank, ranks = self._world.rank, self._world.ranks
        begin, end = count * rank // ranks, count * (rank + 1) // ranks
        if begin == end:
            return self._batches.at(position, 1).numbered(position).blank().to(self._world.device)
        batch = self._batches.at(position + begin, end - begin).numbered(position + begin)
        self._require_known(batch, position + begin)
        return batch.to(self._world.device)

    def _require_known(self, batch: Batch, position: int) -> None:
        """Data that was prepared elsewhere may have been with another tokenizer."""
        largest, size = int(batch.tokens.max()), self.model.decoder.config.vocab_size
        if largest >= size:
            raise DataError(
                f"samples {position} to {position + len(batch.tokens) - 1} hold token id {largest}, and the model has "
                f"{size} tokens; prepare them with the model's tokenizer"
            )

    def _parts(self, batch: Batch, count: int) -> list[Batch]:
        """Micro-batches; as many on every rank, because ranks sum their gradients after each."""
        size = self._config.micro_batch
        parts = list(batch.split(size))
        most = math.ceil(math.ceil(count / self._world.ranks) / size)
        return parts + [batch.blank()] * (most - len(parts))

    def _all_work(self, batch: Batch) -> Work:
        """What the step asks of all ranks together."""
        own = torch.tensor(astuple(self.meter.work(batch)), device=self._world.device)
        return Work(*self._world.total(own).tolist())

    def _advance(self, work: Work, outcome: Outcome, lr: float, seconds: float) -> StepReport:
        losses, grad_norms = remember(self.state, outcome)
        self.state = TrainState(
            step=self.state.step + 1,
            consumed_samples=self.state.consumed_samples + outcome.samples,
            tokens=self.state.tokens + work.learnt,
            elapsed=self.state.elapsed + seconds,
            loss=outcome.loss,
            losses=losses,
            grad_norms=grad_norms,
            lengthened=self.state.lengthened,
        )
        nominal = self._config.global_batch * self._config.seq_length
        return StepReport(
            step=self.state.step,
            loss=outcome.loss,
            lr=lr,
            grad_norm=outcome.grad_norm,
            tokens=self.state.tokens,
            consumed_samples=self.state.consumed_samples,
            elapsed=self.state.elapsed,
            skipped=self.state.consumed_samples // self._config.global_batch - self.state.step,
            **self.meter.measure(work, seconds, nominal),
        )

    def _save(self) -> None:
        count = min(self._config.global_batch, self._config.micro_batch * self._world.ranks)
        position = self.state.consumed_samples - self._config.global_batch
        proof = Proof(position=position, count=count, loss=self._loss_of(position, count))
        self._store.save(self._tensors(), replace(self.state, proof=proof))

    def _tensors(self) -> dict[str, Tensor]:
        """All that changes in training, by name, as it is sharded."""
        decoder = self.model.decoder
        state = optimizer_tensors(decoder, self.optimizer)
        return trained(decoder) | {f"optimizer.{name}": tensor for name, tensor in state.items()}

    def _check_proof(self, proof: Proof, folder: Path) -> None:
        loss = self._loss_of(proof.position, proof.count)
        if abs(loss - proof.loss) > PROOF_TOLERANCE[self._config.precision] * max(1.0, abs(proof.loss)):
            raise CheckpointError(
                f"{folder}: step {self.state.step} had a loss of {proof.loss:.6f} over samples "
                f"{proof.position} to {proof.position + proof.count - 1}, and has {loss:.6f} now: the data, the frozen "
                "weights or the code are not those it was trained with; bring them back, or train anew with --fresh"
            )

    @torch.no_grad()
    def _loss_of(self, position: int, count: int) -> float:
        """Mean loss over the valid targets of some samples, in nats."""
        batch = self._share(position, count)
        total = torch.zeros(2, device=self._world.device, dtype=torch.float32)
        with named(f"the loss of samples {position} to {position + count - 1}"):
            for part in self._parts(batch, count):
                with computing_in(self.model, self._dtype):
                    loss = self.model(part.tokens, part.targets, part.context())
                total += torch.stack([loss, torch.tensor(float(part.valid()), device=loss.device)])
            let_go(self.model)
        loss, valid = self._world.total(total)
        return float(loss / valid.clamp(min=1))


def backward(
    model: LossModel,
    parts: Sequence[Batch],
    valid: int,
    dtype: torch.dtype = torch.float32,
    balance: Balance | None = None,
) -> Tensor:
    """Add the gradient of micro-batches to the parameters; returns their part of the mean loss, in nats, fp32 scalar.

    Every micro-batch is divided by the valid targets of the whole batch of all ranks and not by its own: where they
    differ, as in fine-tuning, a mean of means would weigh tokens by their neighbours and depend on the split.

    Args:
        model: Its parameters' gradients are added to.
        parts: At least one.
        valid: Valid targets of the whole batch.
        dtype: What is computed in.
        balance: Adds the gradient of another loss, which is not in the result.
    """
    total = torch.zeros((), device=parts[0].tokens.device)
    for part in parts:
        with computing_in(model, dtype), balance.over(part) if balance else nullcontext():
            loss = model(part.tokens, part.targets, part.context()) / max(1, valid)
            loss.backward()
        total += loss.detach()
    return total
