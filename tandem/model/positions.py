"""Where tokens stand, as what attention needs of it: rotation by angles, and factors on queries.

Angles are computed in fp32 and their cosines and sines cast to the model's dtype, as transformers does.

Shapes: T tokens (any leading dimensions), H heads, D head dimension, P pairs of rotated dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.catalogue.config import GQA, ModelConfig
from tandem.catalogue.position import DynamicNTK, LinearScaling, Llama3Scaling, QwenNTK, Rope, Yarn
from tandem.kernels.rotation import rotate
from tandem.model.context import AttentionContext


@dataclass(frozen=True)
class Rotation:
    """Angles to rotate pairs by."""

    cos: Tensor
    """[T, 1, P]."""
    sin: Tensor
    interleaved: bool
    """Pairs are neighbours and not halves apart."""

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate the first 2 P dimensions of each head of [T, H, D]; the others stay."""
        return rotate(x, self.cos, self.sin, interleaved=self.interleaved)


@dataclass(frozen=True)
class Placement:
    """A batch's places: the same for all layers."""

    rotation: Rotation | None = None
    query_scale: Tensor | None = None
    """Factor on every query, [T, 1, 1]."""
    slopes: Tensor | None = None
    """ALiBi's, [H]."""

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate keys or queries [T, H, D]."""
        return x if self.rotation is None else self.rotation(x)

    def rotate_query(self, q: Tensor) -> Tensor:
        """Rotate queries [T, H, D] and apply their factor."""
        q = self.rotate(q)
        return q if self.query_scale is None else q * self.query_scale


class Positions:
    """Places tokens for one model.

    Args:
        config: Of the model.
        heads: The query heads whose slopes are wanted; None for all.
    """

    def __init__(self, config: ModelConfig, heads: range | None = None) -> None:
        self._rope = config.position if isinstance(config.position, Rope) else None
        self._logn = config.attention.logn if isinstance(config.attention, GQA) else None
        self._all_heads = config.attention.heads
        self._heads = heads or range(self._all_heads)
        # What does not depend on the batch, by device; made on first use, as a model may be built on the meta device.
        self._fixed: dict[torch.device, Tensor] = {}

    def place(self, context: AttentionContext, dtype: torch.dtype, *, training: bool) -> Placement:
        """The places of a batch's tokens; Qwen v1's adjustments for length are left out in training, as it was."""
        query_scale = None if self._logn is None or training else _logn_factors(context.positions, self._logn, dtype)
        rope = self._rope
        if rope is None:
            return Placement(query_scale=query_scale, slopes=self._once(context.positions.device))
        angles = context.positions[..., None].float() * self._frequencies(rope, context, training=training)
        amplitude = rope.scaling.amplitude if isinstance(rope.scaling, Yarn) else 1.0
        cos, sin = ((wave(angles) * amplitude).unsqueeze(-2).to(dtype) for wave in (torch.cos, torch.sin))
        return Placement(Rotation(cos, sin, rope.interleaved), query_scale)

    def _frequencies(self, rope: Rope, context: AttentionContext, *, training: bool) -> Tensor:
        """Radians per position: [P], or [T, P] where they depend on the sequence."""
        device = context.positions.device
        if isinstance(rope.scaling, DynamicNTK):
            return _falling(rope, _dynamic_base(rope, rope.scaling, context), device)
        if isinstance(rope.scaling, QwenNTK) and not training:
            return _falling(rope, _qwen_base(rope, rope.scaling, context), device)
        return self._once(device)

    def _once(self, device: torch.device) -> Tensor:
        """The frequencies [P], or ALiBi's slopes [H]."""
        if device not in self._fixed:
            rope = self._rope
            self._fixed[device] = (
                alibi_slopes(self._all_heads, device)[self._heads.start : self._heads.stop]
                if rope is None
                else _stretched(rope, _falling(rope, rope.theta, device))
            )
        return self._fixed[device]


def _falling(rope: Rope, base: float | Tensor, device: torch.device) -> Tensor:
    """Frequencies of the pairs, each lower than the one before: [P], or [T, P] for bases [T, 1]."""
    exponents = torch.arange(0, rope.dims, 2, device=device, dtype=torch.float32) / rope.dims
    return 1.0 / base**exponents


def _dynamic_base(rope: Rope, scaling: DynamicNTK, context: AttentionContext) -> Tensor:
    length = torch.maximum(context.prompts, context.positions + 1).clamp(min=scaling.trained).float()
    growth = scaling.factor * length / scaling.trained - (scaling.factor - 1)
    return (rope.theta * growth ** (rope.dims / (rope.dims - 2)))[..., None]


def _qwen_base(rope: Rope, scaling: QwenNTK, context: AttentionContext) -> Tensor:
    # In fp64, so that a prompt of exactly trained * 2^k tokens is not rounded up to the next alpha.
    doublings = torch.ceil(torch.log2(context.prompts.double() / scaling.trained)) + 1
    alpha = (2.0**doublings - 1).clamp(min=1).float()
    return (rope.theta * alpha ** (rope.dims / (rope.dims - 2)))[..., None]


def _stretched(rope: Rope, frequencies: Tensor) -> Tensor:
    """What scalings that do not look at the sequence make of the frequencies [P]."""
    match rope.scaling:
        case LinearScaling(factor=factor):
            return frequencies / factor
        case Llama3Scaling():
            return _llama3(rope.scaling, frequencies)
        case Yarn():
            return _yarn(rope, rope.scaling, frequencies)
    return frequencies


def _llama3(scaling: Llama3Scaling, frequencies: Tensor) -> Tensor:
    turns = scaling.trained * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(rope: Rope, yarn: Yarn, frequencies: Tensor) -> Tensor:
    low, high = _yarn_pair(rope, yarn, yarn.beta_fast), _yarn_pair(rope, yarn, yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dims - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    pairs = torch.arange(rope.dims // 2, device=frequencies.device, dtype=torch.float32)
    stretched = ((pairs - low) / (high - low)).clamp(0, 1)
    return frequencies / yarn.factor * stretched + frequencies * (1 - stretched)


def _yarn_pair(rope: Rope, yarn: Yarn, turns: float) -> float:
    """The pair, as a fraction, that turns so often within the trained length."""
    return rope.dims * math.log(yarn.trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def _logn_factors(positions: Tensor, trained: int, dtype: torch.dtype) -> Tensor:
    """log_trained(i) for position i counted from 1, but at least 1: [T, 1, 1]."""
    factors = torch.log((positions + 1).double()) / math.log(trained)
    return factors.clamp(min=1).to(dtype)[..., None, None]


def alibi_slopes(heads: int, device: torch.device) -> Tensor:
    """One slope per head, fp32 [H] (Press et al., 2021).

    For a power of two they fall from 2^(-8/H) by that factor; between powers, the missing ones are every second of the
    next power's.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = _halving(power) + _halving(2 * power)[0::2][: heads - power]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def _halving(heads: int) -> list[float]:
    return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]
