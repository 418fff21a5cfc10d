"""`Meter`: what a step's work and its seconds say about speed and memory, as fields of a `StepReport`."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import Any

import torch

from tandem.catalogue.config import ModelConfig, MoE
from tandem.catalogue.operations import Operations
from tandem.catalogue.shapes import parameter_shapes
from tandem.model.decoder import Decoder
from tandem.training.data.batch import Batch
from tandem.training.watch.peak import Peak, peak_of
from tandem.training.watch.work import Work, work_of


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Measures the steps of one run."""

    operations: Operations
    peak: Peak
    """Of one device."""
    device: torch.device
    devices: int = 1
    """Cards that share a step's work, over all hosts."""

    @classmethod
    def of(cls, model: Decoder, dtype: torch.dtype | None = None, devices: int = 1) -> Meter:
        """For a model as it will be trained: where it is, and with what is frozen now.

        Args:
            model: Anything frozen is frozen already.
            dtype: What its matrices are multiplied in; its parameters' own if left out.
            devices: See the field.
        """
        weight = model.embedding.weight
        operations = Operations.of(model.config, trained_adapters(model))
        return cls(operations=operations, peak=peak_of(weight.device, dtype or weight.dtype), device=weight.device,
                   devices=devices)  # fmt: skip

    def work(self, batch: Batch) -> Work:
        """What a batch asks for; that of several ranks is added before it is measured."""
        return work_of(batch, self.operations.config)

    def measure(self, work: Work, seconds: float, nominal: int) -> dict[str, Any]:
        """Fields of a step's report.

        Args:
            work: Of the whole step, all ranks together.
            seconds: That it took.
            nominal: GBS x SEQ_LEN, the documents' count of its tokens.
        """
        operations = self.operations.total(work.real, work.pairs)
        return {
            "seconds": seconds,
            "tokens_per_s": work.positions / seconds,
            "tokens_per_s_device": tokens_per_device(nominal, self.devices, seconds),
            "real_tokens_per_s": work.real / seconds,
            "learnt_tokens_per_s": work.learnt / seconds,
            "mfu": operations / (seconds * self.devices * self.peak.flops),
            "memory_peak": peak_memory(self.device),
        }

    def formula(self) -> str:
        """How MFU is counted, with this run's numbers, in lines."""
        return f"{self.operations.formula()}\n  devices = {self.devices}\n  peak = {self.peak} of each"


def tokens_per_device(nominal: int, devices: int, seconds: float) -> float:
    """The documents' tokens/s/p: GBS x SEQ_LEN / (cards x milliseconds of an iteration) x 1000."""
    return nominal / (devices * seconds * 1000) * 1000


def trained_adapters(model: Decoder) -> int:
    """Trained weights beside a frozen model that a token passes; 0 where the model itself is trained."""
    own = parameter_shapes(model.config)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not trained or any(name in own for name in trained):
        return 0
    return sum(round(weight.numel() * _share(name, model.config)) for name, weight in trained.items())


def _share(name: str, config: ModelConfig) -> float:
    mixture = config.feed_forward
    return mixture.top_k / mixture.experts if isinstance(mixture, MoE) and ".experts." in name else 1.0


def peak_memory(device: torch.device) -> int:
    """Most bytes that were in use since the process began: of the device, or of this process on a CPU."""
    if device.type == "cpu":
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return int(torch.get_device_module(device).max_memory_allocated(device))
