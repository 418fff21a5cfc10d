"""`estimate`: how much memory each rank of a run will take at its highest point, part by part."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from tandem.catalogue.arithmetic import DTYPE_BYTES, parameters
from tandem.catalogue.config import ModelConfig
from tandem.catalogue.shapes import parameter_shapes
from tandem.training.plan.footing import Footing
from tandem.training.plan.live import LARGE, Snapshot
from tandem.training.plan.trace import FIRST, KEPT, LAST, TRAINED, UPDATE, moments_of

WIDE = DTYPE_BYTES["float32"]
"""Of weights, gradients' sums and each of the optimizer's two averages."""
PROCESS = 330 * 2**20
"""What a process has before its model is there: Python, PyTorch and tandem. Measured on Linux, PyTorch 2.13 for CPU."""
HEAP = 0.25
"""Holes in glibc's heap, as a share of what is in it; docs/training-watch.md has the measurements it comes from."""
PARTS = (
    "weights",
    "copies",
    "gradients",
    "optimizer",
    "activations",
    "buffers",
    "gathered",
    "batch",
    "process",
    "heap",
)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of one rank when it has most."""

    moment: str
    """Which part of the step that is in; on several ranks the update begins with the sum of the last gradients."""
    weights: int
    """The rank's share, fp32, adapters and what is frozen included."""
    copies: int
    """The weights rounded to what is computed in; 0 where that is fp32, and for FSDP, which rounds what it gathers."""
    gradients: int
    """Those that are there at that moment; fp32."""
    optimizer: int
    """exp_avg and exp_avg_sq, averages of gradients and of their squares, fp32; its master weights are `weights`."""
    activations: int
    """Kept by the forward pass for the backward."""
    buffers: int
    """All else that the code makes: logits in pieces and their gradients, what a layer takes while it computes."""
    gathered: int
    """Weights of other ranks that are here for the moment, and gradients on their way to them; 0 for one rank."""
    batch: int
    """Token ids, targets and segments of a step."""
    process: int
    """Python and libraries; 0 on a device, where it is not the device's memory."""
    heap: int
    """What the C library's heap holds beside what was asked of it; 0 on a device."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, part) for part in PARTS)

    def as_json(self) -> dict[str, int | str]:
        """Every part by its name, in bytes, and their sum."""
        return {"moment": self.moment, **{part: getattr(self, part) for part in PARTS}, "total": self.total}


def estimate(config: ModelConfig, footing: Footing) -> MemoryPlan:
    """The memory of one rank.

    One rank's numbers are those of the step's own code, watched over fake tensors; on several ranks the shares and what
    FSDP gathers are computed beside.

    Args:
        config: Of the model.
        footing: How it is trained.
    """
    moments = _moments(config, replace(footing, ranks=min(footing.ranks, 2)))
    plans = [_at(name, moments, config, footing) for name in moments if name not in (KEPT, TRAINED)]
    return max(plans, key=lambda plan: plan.total)


def least(config: ModelConfig, footing: Footing) -> int:
    """Bytes of one rank that no plan is below.

    Weights and, where they are trained, a gradient and two averages of each, which are all there at the update; or the
    same without the gradients, but with the batch and what every layer hands to the next, which are there at the loss.
    """
    count, all_trained = parameters(config), footing.lora is None
    weights = WIDE * count // footing.ranks
    loss = (3 if all_trained else 1) * weights + _batch_bytes(footing) + _between_layers(config, footing)
    return max((4 if all_trained else 1) * weights, loss)


def most(config: ModelConfig, footing: Footing) -> int:
    """Bytes of one rank that no plan is above: what fits in these needs no plan, which takes seconds.

    The factors are twice what was met among the named models and small shapes of them.
    """
    gathered = _gathered(config, footing, UPDATE) + _gathered(config, footing, LAST) if footing.ranks > 1 else 0
    logits = WIDE * footing.micro_batch * footing.seq_length * config.vocab_size
    step = 100 * _between_layers(config, footing) + logits + _batch_bytes(footing)
    return 8 * WIDE * parameters(config) // footing.ranks + gathered + step + 2 * PROCESS


@lru_cache(maxsize=64)
def _moments(config: ModelConfig, footing: Footing) -> dict[str, Snapshot]:
    return moments_of(config, footing)


def _at(name: str, moments: dict[str, Snapshot], config: ModelConfig, footing: Footing) -> MemoryPlan:
    moment, kept, trained = moments[name], moments[KEPT], moments[TRAINED].other
    adapters = trained if footing.lora is not None else 0
    shapes, count = parameter_shapes(config).values(), parameters(config)
    small = sum(math.prod(shape) for shape in shapes if math.prod(shape) * WIDE < LARGE)
    item, sharded, on_host = DTYPE_BYTES[footing.precision], footing.ranks > 1, footing.device == "cpu"
    copies = 0 if sharded or footing.precision == "float32" else min(item * (count + adapters // WIDE), moment.other)
    activations = min(kept.other - min(copies, kept.other), moment.other - copies)
    return MemoryPlan(
        moment=name,
        weights=(WIDE * count + adapters) // footing.ranks,
        copies=copies,
        # On several ranks they were watched in what is computed in, and are kept in fp32.
        gradients=moment.gradients * WIDE // (item if sharded else WIDE) // footing.ranks,
        optimizer=2 * trained // footing.ranks,
        activations=activations,
        buffers=moment.other - copies - activations,
        gathered=_gathered(config, footing, name) if sharded else 0,
        batch=_batch_bytes(footing),
        process=PROCESS if on_host else 0,
        heap=int(HEAP * (moment.small + 3 * WIDE * small // footing.ranks)) if on_host else 0,
    )


def _gathered(config: ModelConfig, footing: Footing, moment: str) -> int:
    """What stands whole on a rank: embedding and head all the time, and two layers (one computes, one arrives).

    And as much again of one layer, in fp32, for the gradients that are on their way to their ranks. Those of embedding
    and head go when the backward is over: the head's are whole until then, and at last both, and both again in fp32.
    """
    item, trained = DTYPE_BYTES[footing.precision], footing.lora is None
    sizes: dict[str, int] = {}
    for name, shape in parameter_shapes(config).items():
        layer = name.split(".")[1] if name.startswith("layers.") else ""
        sizes[layer] = sizes.get(layer, 0) + math.prod(shape)
    root = sizes.pop("")
    if moment == UPDATE:
        return root * (2 * item + WIDE if trained else item)
    largest = max(sizes.values())
    head = config.vocab_size * config.hidden_size if trained and moment in (LAST, FIRST) else 0
    return (root + 2 * largest + head) * item + largest * WIDE


def _between_layers(config: ModelConfig, footing: Footing) -> int:
    """What each layer hands on, of a micro-batch: kept in every mode of recomputation."""
    tokens = footing.micro_batch * footing.seq_length
    return config.layers * tokens * config.hidden_size * DTYPE_BYTES[footing.precision]


def _batch_bytes(footing: Footing) -> int:
    planes = 3 if footing.packed else 2
    return planes * 8 * footing.micro_batch * footing.micro_batches * footing.seq_length
