"""What a run needs of each rank's memory, beside what there is, and the cheapest change that would fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import find_model
from tandem.parallel.device import DeviceName, choose_device, memory_of
from tandem.training.launch.ranks import Hosts
from tandem.training.named.weights import config_of, weights_of
from tandem.training.plan.fit import Change, cheapest_fit
from tandem.training.plan.footing import Footing
from tandem.training.plan.memory import MemoryPlan, estimate
from tandem.training.settings.config import Launch, LoraConfig, StepConfig
from tandem.training.settings.run import Run


@dataclass(frozen=True, kw_only=True)
class Need:
    """The memory of one rank."""

    plan: MemoryPlan
    ranks: int
    """Of all hosts."""
    capacity: int
    """Bytes that a rank can have on this machine."""
    change: Change | None
    """What would fit; None where the run does, or nothing would."""

    @property
    def fits(self) -> bool:
        """Whether the run can be done as it is."""
        return self.plan.total <= self.capacity

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: what is trained, and the optimizer's two averages of it, all fp32."""
        return self.plan.optimizer * self.ranks * 3 // 2


def memory_need(run: Run, device: DeviceName) -> Need:
    """The need of a run on this machine's devices.

    Raises:
        ModelFolderError: The model folder is there and cannot be used for the run.
        UsageError: There is no such device.
    """
    packed = run.data.documents_apart if run.reads == "pretrain" else run.data.pack
    return need_of(_config(run), run.training, run.launch, device, packed=packed, lora=run.lora)


def need_of(
    config: ModelConfig,
    step: StepConfig,
    launch: Launch,
    device: DeviceName,
    *,
    packed: bool,
    lora: LoraConfig | None = None,
) -> Need:
    """The need of a step on this machine's devices.

    Args:
        config: Of the model.
        step: What is done.
        launch: By which ranks.
        device: On what.
        packed: Whether samples hold several texts that do not see each other.
        lora: The adapters that alone are trained, if so.

    Raises:
        UsageError: There is no such device.
    """
    chosen, hosts = choose_device(device), Hosts.of(launch, device)
    ranks = hosts.count * hosts.ranks
    footing = Footing(
        seq_length=step.seq_length,
        micro_batch=step.micro_batch,
        micro_batches=max(1, step.global_batch // (step.micro_batch * ranks)),
        precision=step.precision,
        recompute=step.recompute,
        device=cast(Literal["cpu", "cuda", "npu"], chosen.type),
        ranks=ranks,
        packed=packed,
        balance=step.balance,
        lora=lora,
    )
    _, total = memory_of(chosen)
    capacity = total // hosts.ranks if chosen.type == "cpu" else total
    plan = estimate(config, footing)
    change = cheapest_fit(config, footing, capacity) if plan.total > capacity else None
    return Need(plan=plan, ranks=ranks, capacity=capacity, change=change)


def _config(run: Run) -> ModelConfig:
    """The folder's own, or the named model's where it is not there yet."""
    if (run.paths.weights / "config.json").is_file():
        return config_of(run, weights_of(run))
    return find_model(run.model).config
