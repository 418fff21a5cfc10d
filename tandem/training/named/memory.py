"""What a run needs of each rank's memory, beside what there is, and the cheapest change that would fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import find_model
from tandem.parallel.device import DeviceName, choose_device, memory_of
from tandem.training.launch.ranks import Hosts
from tandem.training.named.weights import config_of
from tandem.training.plan.fit import Change, cheapest_fit
from tandem.training.plan.footing import Footing
from tandem.training.plan.memory import MemoryPlan, estimate
from tandem.training.settings.run import Run


@dataclass(frozen=True, kw_only=True)
class Need:
    """The memory of one rank."""

    plan: MemoryPlan
    capacity: int
    """Bytes that a rank can have on this machine."""
    change: Change | None
    """What would fit; None where the run does, or nothing would."""

    @property
    def fits(self) -> bool:
        """Whether the run can be done as it is."""
        return self.plan.total <= self.capacity


def memory_need(run: Run, device: DeviceName) -> Need:
    """The need of a run on this machine's devices.

    Raises:
        ModelFolderError: The model folder is there and cannot be used for the run.
        UsageError: There is no such device.
    """
    chosen = choose_device(device)
    config, footing = _config(run), _footing(run, device, chosen.type)
    _, total = memory_of(chosen)
    capacity = total // Hosts.of(run.launch, device).ranks if chosen.type == "cpu" else total
    plan = estimate(config, footing)
    change = cheapest_fit(config, footing, capacity) if plan.total > capacity else None
    return Need(plan=plan, capacity=capacity, change=change)


def _config(run: Run) -> ModelConfig:
    """The folder's own, or the named model's where it is not there yet."""
    if (run.paths.weights / "config.json").is_file():
        return config_of(run)
    return find_model(run.model).config


def _footing(run: Run, device: DeviceName, kind: str) -> Footing:
    hosts = Hosts.of(run.launch, device)
    ranks = hosts.count * hosts.ranks
    return Footing(
        seq_length=run.training.seq_length,
        micro_batch=run.training.micro_batch,
        micro_batches=max(1, run.training.global_batch // (run.training.micro_batch * ranks)),
        precision=run.training.precision,
        recompute=run.training.recompute,
        device=cast(Literal["cpu", "cuda", "npu"], kind),
        ranks=ranks,
        packed=run.data.documents_apart if run.reads == "pretrain" else run.data.pack,
        lora=run.lora,
    )
