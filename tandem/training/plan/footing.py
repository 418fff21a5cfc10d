"""`Footing`: what decides how much memory a step takes, beside the model's own shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tandem.errors import UsageError
from tandem.training.settings.config import LoraConfig, Precision, Recompute


@dataclass(frozen=True, kw_only=True)
class Footing:
    """How a model is trained.

    Raises:
        UsageError: A number is not positive.
    """

    seq_length: int
    micro_batch: int = 1
    """Sequences that one rank computes at once."""
    micro_batches: int = 1
    """How many of these a rank takes for one step: GBS / (MBS · ranks)."""
    precision: Precision = "float32"
    """What matrices are multiplied in; the optimizer has fp32 in either case."""
    recompute: Recompute = "none"
    """Which activations are computed again instead of kept."""
    device: Literal["cpu", "cuda", "npu"] = "cpu"
    """Whose memory it is."""
    ranks: int = 1
    """Cards that share weights, gradients and optimizer state (FSDP)."""
    packed: bool = False
    """Rows hold several sequences that do not see each other."""
    balance: float | None = None
    """Coefficient of the loss that keeps a mixture's experts evenly busy; None for the model's own."""
    lora: LoraConfig | None = None
    """None where the whole model is trained."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name in ("seq_length", "micro_batch", "micro_batches", "ranks"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: give a number from 1 up")
