"""The training loop: batches to steps to checkpoints, on one rank or many.

Data order, learning rate and everything else are functions of `TrainState`, so a run that goes on from a checkpoint
takes the same steps, bit for bit on the same ranks with the same number of threads, as one that never stopped.

A step's samples are shared out over the ranks; what any rank must know of all is a sum: of valid targets before the
losses are divided by them, of losses after. So decisions that follow from them are the same everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, replace

import torch
from torch import Tensor

from tandem.errors import TandemError
from tandem.parallel.world import World, named
from tandem.training.checkpoints.proof import Proof
from tandem.training.checkpoints.state import TrainState
from tandem.training.checkpoints.store import CheckpointStore
from tandem.training.compute.balance import Balance
from tandem.training.compute.batch_loss import backward, mean_loss
from tandem.training.compute.clipping import clip_gradients
from tandem.training.compute.loss import LossModel
from tandem.training.compute.optimizer import build_optimizer, optimizer_tensors
from tandem.training.compute.parallelize import trained
from tandem.training.compute.schedule import Schedule, set_learning_rate
from tandem.training.compute.share import Share
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
        self._config = config
        self._store = store
        self._guard = guard or Guard(config.guard)
        self._world = world or World()
        self._share = Share(batches, self._world, config.micro_batch, model.decoder.config.vocab_size)
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
            loss = self._loss_of(state.proof.position, state.proof.count)
            state.proof.check(loss, self._config.precision, state.step, store.folder.path)

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
        samples, lr = self._config.global_batch, self._schedule.at(self.state.step + 1)
        batch = self._share.at(self.state.consumed_samples, samples)
        work = self._all_work(batch)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad()
        self._balance.begin(work.real, self._world.device)
        parts = self._share.micro_batches(batch, samples)
        own = backward(self.model, parts, work.learnt, self._dtype, self._balance)
        loss, balance, stops = self._all_sums(own, self._balance.total, float(asked()))
        norm = clip_gradients(self.model.parameters(), self._config.clip)
        outcome = Outcome(loss=loss, grad_norm=norm, samples=samples)
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

    def _all_work(self, batch: Batch) -> Work:
        """What the step asks of all ranks together."""
        own = torch.tensor(astuple(self.meter.work(batch)), device=self._world.device)
        return Work(*self._world.total(own).tolist())

    def _all_sums(self, *own: Tensor | float) -> list[float]:
        """Sums over the ranks of some numbers that each of them has its own of; one message for all."""
        told = torch.stack([torch.as_tensor(number, device=self._world.device) for number in own])
        return [float(number) for number in self._world.total(told)]

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

    def _loss_of(self, position: int, count: int) -> float:
        """Mean loss over the valid targets of some samples, in nats."""
        with named(f"the loss of samples {position} to {position + count - 1}"):
            parts = self._share.micro_batches(self._share.at(position, count), count)
            return mean_loss(self.model, parts, self._world, self._dtype)
