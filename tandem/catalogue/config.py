"""`ModelConfig`: everything a decoder's computation depends on, as one frozen value.

Parts that come in kinds are tagged unions (today: one kind each), so that a field exists only where it means something.
What a checkpoint folder calls these things is the business of `model/families`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem.errors import ModelFolderError


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ModelFolderError(f"model configuration: {message}")


@dataclass(frozen=True, kw_only=True)
class GQA:
    """Grouped-query attention: `heads` query heads share `kv_heads` key/value heads."""

    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        """Refuse shapes no kernel can run."""
        _require(min(self.heads, self.kv_heads, self.head_dim) > 0, f"attention sizes must be positive: {self}")
        _require(self.heads % self.kv_heads == 0, f"{self.heads} heads are not divisible by {self.kv_heads} kv heads")
        _require(self.head_dim % 2 == 0, f"head_dim {self.head_dim} is odd; rotary embedding needs pairs")


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions over the two halves of each head (GPT-NeoX order)."""

    theta: float

    def __post_init__(self) -> None:
        """Refuse a base without a logarithm."""
        _require(self.theta > 0, f"rope theta {self.theta} must be positive")


@dataclass(frozen=True, kw_only=True)
class SwiGLU:
    """Gated feed-forward: `down(silu(gate(x)) * up(x))`."""

    size: int

    def __post_init__(self) -> None:
        """Refuse an empty layer."""
        _require(self.size > 0, f"feed-forward size {self.size} must be positive")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder.

    Raises:
        ModelFolderError: A size is not positive or sizes contradict each other.
    """

    family: str
    """Which translation in `model/families` reads and writes it."""
    vocab_size: int
    hidden_size: int
    layers: int
    attention: GQA
    position: Rope
    feed_forward: SwiGLU
    norm_eps: float
    tied_embeddings: bool
    """The output head is the embedding table."""
    max_position: int
    """Longest sequence the model was made for, in tokens."""

    def __post_init__(self) -> None:
        """Refuse empty models."""
        sizes = {"vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "layers": self.layers}
        for name, size in (sizes | {"max_position": self.max_position}).items():
            _require(size > 0, f"{name} {size} must be positive")
        _require(self.norm_eps > 0, f"norm_eps {self.norm_eps} must be positive")
