"""How a model knows where its tokens stand: rotary embedding and its scalings, or ALiBi.

Sources: Su et al., 2021 (RoPE); Press et al., 2021 (ALiBi); Peng et al., 2023 (YaRN); the "NTK-aware" posts for the
two that change the base; Llama 3.1's and Qwen's published code for theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tandem.catalogue.require import require

MOST_STRETCHED = 1e6
"""Above it, what a dynamic base grows by is lost in single precision."""
LEAST_STEP = 1e-6
"""Between Llama 3's frequency factors; what is divided by less is no number in single precision."""
LEAST_BETA = 1e-6
"""Below it, a pair of YaRN's ramp is no number any more."""


def _require_factor(factor: float) -> None:
    require(1 <= factor <= MOST_STRETCHED, f"rope factor {factor} must be from 1 to {MOST_STRETCHED:g}")


def _require_trained(trained: int) -> None:
    require(trained > 0, f"trained length {trained} must be positive")


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions are divided by `factor`."""

    factor: float

    def __post_init__(self) -> None:
        """Refuse a stretch that is none."""
        _require_factor(self.factor)


@dataclass(frozen=True, kw_only=True)
class DynamicNTK:
    """The base grows with the sequence once it is longer than the model was trained for.

    A prompt's tokens take the base of the prompt's length, a generated token that of its own position.
    """

    factor: float
    trained: int
    """Tokens up to which nothing changes."""

    def __post_init__(self) -> None:
        """Refuse a stretch that is none."""
        _require_factor(self.factor)
        _require_trained(self.trained)


@dataclass(frozen=True, kw_only=True)
class QwenNTK:
    """Qwen v1: the base is multiplied by a power of alpha, which the prompt's length alone decides.

    Alpha = max(2^(ceil(log2(L / trained)) + 1) - 1, 1) for a prompt of L tokens, and stays for all of its answer; only
    at inference.
    """

    trained: int

    def __post_init__(self) -> None:
        """Refuse an empty length."""
        _require_trained(self.trained)


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""

    factor: float
    low: float
    """Wavelengths over trained / low are stretched."""
    high: float
    """Wavelengths under trained / high are kept."""
    trained: int

    def __post_init__(self) -> None:
        """Refuse bounds in the wrong order."""
        _require_factor(self.factor)
        ascend = 0 < self.low < self.high and self.high - self.low > LEAST_STEP
        require(ascend, f"rope frequency factors {self.low} and {self.high} must ascend from 0")
        _require_trained(self.trained)


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Slow pairs are stretched by `factor`, fast ones kept, a ramp between, and attention is sharpened a little."""

    factor: float
    trained: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """Turns within the trained length above which a pair is kept (fast) and below which it is stretched (slow)."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    """Factor on cosines and sines; None takes it from the fields above."""
    truncate: bool = True
    """Whether the ramp's ends are rounded to whole pairs."""

    def __post_init__(self) -> None:
        """Refuse bounds in the wrong order."""
        _require_factor(self.factor)
        ascend = LEAST_BETA <= self.beta_slow < self.beta_fast
        require(ascend, f"yarn betas {self.beta_slow} and {self.beta_fast} must ascend from {LEAST_BETA:g}")
        _require_trained(self.trained)
        for name in ("mscale", "mscale_all_dim", "attention_factor"):
            value = getattr(self, name)
            require(value is None or value > 0, f"yarn {name} {value} must be positive")

    @property
    def amplitude(self) -> float:
        """Factor on cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._sharpening(self.mscale) / self._sharpening(self.mscale_all_dim)
        return self._sharpening(1.0)

    @property
    def softmax_factor(self) -> float:
        """Factor on the scores of latent attention, which DeepSeek takes out of the rotation."""
        return self._sharpening(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    def _sharpening(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


Scaling = LinearScaling | DynamicNTK | QwenNTK | Llama3Scaling | Yarn


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions."""

    theta: float
    dims: int
    """Rotated dimensions of each head, from its first; the others carry no position."""
    interleaved: bool = False
    """Pairs are neighbours (GPT-J) and not halves apart (GPT-NeoX)."""
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        """Refuse a base that no pair turns slower by, and dimensions without a partner."""
        require(1 < self.theta < math.inf, f"rope theta {self.theta} must be above 1")
        require(self.dims > 0, f"rotated dimensions {self.dims} must be positive")
        require(self.dims % 2 == 0, f"{self.dims} rotated dimensions are odd; rotary embedding needs pairs")
        if isinstance(self.scaling, DynamicNTK | QwenNTK):
            require(self.dims > 2, f"a base that grows needs more than {self.dims} rotated dimensions")

    def reach(self, trained: int) -> int | None:
        """Longest sequence these positions are meant for, of a model `trained` on so many tokens; None for any."""
        match self.scaling:
            case DynamicNTK() | QwenNTK():
                return None
            case Yarn(factor=factor, trained=own):
                return int(own * factor)
            case LinearScaling(factor=factor):
                return int(trained * factor)
            case Llama3Scaling() | None:  # Llama's own length counts its scaling in
                return trained

    def stretch(self, prompt: int) -> int:
        """A number for how far a prompt's length moves the angles: equal numbers, equal keys and values; 0 for not."""
        match self.scaling:
            case QwenNTK(trained=trained):
                return max(math.ceil(math.log2(prompt / trained)), 0)
            case DynamicNTK(trained=trained):
                return prompt if prompt > trained else 0
        return 0


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """No rotation: a score loses slope * distance, one slope per head."""
