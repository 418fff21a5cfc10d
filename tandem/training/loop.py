"""The training loop: batches to steps to checkpoints.

Data order, learning rate and everything else are functions of `TrainState`, so a run that goes on from a checkpoint
takes the same steps, bit for bit on the same machine with the same number of threads, as one that never stopped.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.errors import DivergenceError
from tandem.model.decoder import Decoder
from tandem.training.checkpoint import CheckpointStore, TrainState
from tandem.training.config import StageConfig
from tandem.training.data.batch import IGNORED, Batch, Batches
from tandem.training.interruption import between_steps
from tandem.training.metrics import MetricsLog
from tandem.training.optimizer import build_optimizer
from tandem.training.progress import Progress, StepReport
from tandem.training.schedule import Schedule, set_learning_rate


class Trainer:
    """One stage of training.

    Args:
        model: Trained in place, where its parameters are.
        batches: What it learns from.
        config: How.
        store: Where its checkpoints are.
    """

    def __init__(self, model: Decoder, batches: Batches, config: StageConfig, store: CheckpointStore) -> None:
        self.model = model
        self.optimizer = build_optimizer(model, config)
        self.state = TrainState()
        self._batches = batches
        self._config = config
        self._store = store
        self._device = model.embedding.weight.device
        self._schedule = Schedule(peak=config.lr, minimum=config.min_lr, warmup=config.warmup_steps, steps=config.steps)

    def resume(self) -> None:
        """Go on from the latest checkpoint; without one, from the beginning.

        Raises:
            CheckpointError: The checkpoint is damaged or belongs to another run.
        """
        step = self._store.latest()
        if step is not None:
            self.state = self._store.load(self.model, self.optimizer, step)

    def run(self, log: MetricsLog, progress: Progress) -> None:
        """Take all steps that are left, with a checkpoint every so often, at the end, and where it is interrupted.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the steps until then are in a checkpoint.
        """
        self.model.train()
        with between_steps() as interrupted:
            while self.state.step < self._config.steps:
                report = self.step()
                log.append(report)
                progress.step(report)
                if interrupted() or self._saves_now():
                    self._store.save(self.model, self.optimizer, self.state)
                if interrupted():
                    progress.note(f"stopped after step {self.state.step}; the same command goes on from there")
                    raise KeyboardInterrupt

    def _saves_now(self) -> bool:
        return self.state.step % self._config.save_every == 0 or self.state.step == self._config.steps

    def step(self) -> StepReport:
        """One optimisation step.

        Raises:
            DivergenceError: The loss or the gradient is no number any more; nothing was updated.
        """
        began = time.perf_counter()
        lr = self._schedule.at(self.state.step + 1)
        batch = self._batches.at(self.state.consumed_samples, self._config.global_batch).to(self._device)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad()
        loss = float(backward(self.model, batch, self._config.micro_batch))
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip))
        self._refuse_divergence(loss, norm)
        self.optimizer.step()
        return self._advance(batch, loss, lr, norm, time.perf_counter() - began)

    def _refuse_divergence(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergenceError(
                f"step {self.state.step + 1}: loss {loss} with gradient norm {norm}: training diverged; lower lr "
                f"({self._config.lr}) or raise warmup_steps ({self._config.warmup_steps}) and train anew"
            )

    def _advance(self, batch: Batch, loss: float, lr: float, norm: float, seconds: float) -> StepReport:
        self.state = TrainState(
            step=self.state.step + 1,
            consumed_samples=self.state.consumed_samples + self._config.global_batch,
            tokens=self.state.tokens + batch.valid(),
            elapsed=self.state.elapsed + seconds,
            loss=loss,
        )
        return StepReport(
            step=self.state.step,
            loss=loss,
            lr=lr,
            grad_norm=norm,
            tokens=self.state.tokens,
            tokens_per_s=batch.tokens.numel() / seconds,
            consumed_samples=self.state.consumed_samples,
            elapsed=self.state.elapsed,
        )


def backward(model: Decoder, batch: Batch, micro_batch: int) -> Tensor:
    """Add the batch's gradient to the parameters, micro-batch by micro-batch; returns the mean loss, in nats.

    Every micro-batch is divided by the valid targets of the whole batch and not by its own: where they differ, as in
    fine-tuning, a mean of means would weigh tokens by their neighbours and depend on the split.
    """
    valid = max(1, batch.valid())
    total = torch.zeros((), device=batch.tokens.device)
    for part in batch.split(micro_batch):
        logits = model(part.tokens, part.context())
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), part.targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        (loss / valid).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total / valid
