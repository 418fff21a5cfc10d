"""`Demand`: what a rank is to compute and the memory it has for that; `Need`: what the plan says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch

from tandem.catalogue.config import ModelConfig
from tandem.errors import UsageError
from tandem.parallel.device import DeviceName, choose_device, memory_of
from tandem.parallel.host_memory import host_swap
from tandem.training.launch.ranks import Hosts
from tandem.training.plan.drawing import advice, gib
from tandem.training.plan.fit import Change, cheapest_fit
from tandem.training.plan.footing import Footing
from tandem.training.plan.memory import MemoryPlan, estimate, least, most
from tandem.training.settings.config import Launch, LoraConfig, StepConfig


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


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A step of one rank on this machine."""

    config: ModelConfig
    footing: Footing
    device: torch.device
    sharing: int
    """Ranks that share the device's memory: on CPUs all of a host."""

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        step: StepConfig,
        launch: Launch,
        device: DeviceName,
        *,
        packed: bool,
        lora: LoraConfig | None = None,
    ) -> Demand:
        """The demand of a step.

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
        return cls(config=config, footing=footing, device=chosen, sharing=hosts.ranks if chosen.type == "cpu" else 1)

    @cached_property
    def need(self) -> Need:
        """What the plan says; takes seconds."""
        _, total = memory_of(self.device)
        capacity = total // self.sharing
        plan = estimate(self.config, self.footing)
        change = cheapest_fit(self.config, self.footing, capacity) if plan.total > capacity else None
        return Need(plan=plan, ranks=self.footing.ranks, capacity=capacity, change=change)

    def require_possible(self) -> None:
        """Refuse what is sure not to fit, at once.

        Raises:
            UsageError: Less than the least of every plan is there, swap included.
        """
        _, total = memory_of(self.device)
        total += host_swap() if self.device.type == "cpu" else 0
        floor = least(self.config, self.footing)
        # Rows that are not packed may all be shorter than seq_length.
        if self.footing.packed and floor * self.sharing > total:
            raise UsageError(
                f"each rank needs more than {gib(floor)} GiB of memory, and {self._place} has {gib(total)} in all"
                f"{self._shared}; {advice(self.need.change)}"
            )

    def remarks(self) -> Iterator[str]:
        """What is to be said before a run begins: nothing, and at once, of one that is sure to fit."""
        free, _ = memory_of(self.device)
        if most(self.config, self.footing) * self.sharing <= free:
            return
        needed = self.need.plan.total
        if needed * self.sharing > free:
            change = cheapest_fit(self.config, self.footing, free // self.sharing)
            yield (
                f"by its plan each rank needs {gib(needed)} GiB of memory, and {self._place} has {gib(free)} free"
                f"{self._shared}; it may end without a word; {advice(change)}"
            )

    @property
    def _place(self) -> str:
        return "this host" if self.device.type == "cpu" else "its device"

    @property
    def _shared(self) -> str:
        return f", for {self.sharing} ranks" if self.sharing > 1 else ""
