"""The pieces that the families share, as their formulas stand: norms, softmax attention, rotary positions, SwiGLU.

Arrays are float64. `T` tokens, `H` query heads, `G` key and value heads, `d` the width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


class Weights:
    """The tensors of a checkpoint by name, widened to float64 as they are asked for."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    def under(self, prefix: str) -> Weights:
        """The tensors whose names go on after `prefix` and a dot."""
        return Weights(self._tensors, f"{self._prefix}{prefix}.")

    def __getitem__(self, name: str) -> Array:
        return np.asarray(self._tensors[self._prefix + name], dtype=np.float64)

    def linear(self, name: str, x: Array, bias: bool = False) -> Array:
        """`x Wᵀ + b` with `name.weight` [out, in] and, where `bias`, `name.bias` [out]."""
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if bias else y


def of_layers(prefix: str, count: int, layer: Shapes) -> Shapes:
    """The shapes of one layer, named for each of `count` layers: `prefix.0.…`, `prefix.1.…` and so on."""
    return {f"{prefix}.{n}.{name}": shape for n in range(count) for name, shape in layer.items()}


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """`x / sqrt(mean(x²) + ε) · w` over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def layer_norm(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    """`(x - mean) / sqrt(variance + ε) · w + b` over the last axis (Ba et al. 2016, arXiv:1607.06450)."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + epsilon) * weight + bias


def silu(x: Array) -> Array:
    """`x / (1 + exp(-x))`."""
    return x / (1.0 + np.exp(-x))


def split_heads(x: Array, heads: int) -> Array:
    """[T, heads · d] to [heads, T, d]: the channels of a head lie side by side."""
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def attention(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    """Causal softmax attention: q [H, T, d], k and v [G, T, d], bias [H, T, T] on the scores; [T, H · d].

    Scores are divided by the root of d. Query heads in a row share a key head: head h uses h // (H // G).
    """
    heads, length, width = q.shape
    shared_by = heads // len(k)
    k, v = np.repeat(k, shared_by, axis=0), np.repeat(v, shared_by, axis=0)
    scores = q @ k.swapaxes(1, 2) / np.sqrt(width)
    if bias is not None:
        scores = scores + bias
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v).swapaxes(0, 1).reshape(length, heads * width)


def turns(length: int, width: int, base: float) -> NDArray[np.complex128]:
    """The rotations of RoPE as complex numbers, [length, width / 2]: `exp(i · position · base^(-2j / width))`.

    Su et al. 2021, arXiv:2104.09864.
    """
    frequencies = base ** (-2.0 * np.arange(width // 2) / width)
    return np.exp(1j * np.outer(np.arange(length), frequencies))


def rotate_halves(x: Array, rotations: NDArray[np.complex128]) -> Array:
    """Turn the pairs (j, j + n/2) of the first n channels of x [heads, T, d]; the others pass."""
    half = rotations.shape[1]
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * rotations
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half :]], axis=-1)


def rotate_neighbours(x: Array, rotations: NDArray[np.complex128]) -> Array:
    """Turn the pairs (2j, 2j + 1) of the first n channels of x [heads, T, d]; the others pass."""
    width = 2 * rotations.shape[1]
    turned = (x[..., 0:width:2] + 1j * x[..., 1:width:2]) * rotations
    y = x.copy()
    y[..., 0:width:2], y[..., 1:width:2] = turned.real, turned.imag
    return y
