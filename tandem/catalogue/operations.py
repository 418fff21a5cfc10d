"""Floating-point operations of training, counted from real sequence lengths: what MFU is a share of.

A matrix product counts two operations for each of its N weights and each token: one product forward, and two backward
(gradients of inputs and of weights). LoRA leaves the weights' own gradients out, and passes its adapters' n weights
besides. Attention has no weights, so its two products are done three times in either case, for every pair of a token
and one it may see: padding, neighbours in a packed row and the future are not counted, nor is what recomputing repeats.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tandem.catalogue.arithmetic import active_parameters
from tandem.catalogue.config import GQA, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Operations:
    """How many floating-point operations training takes, as `weights · T + attention · P`.

    T is the number of real tokens; P the pairs of a token and one that it sees, over all layers: `attended_pairs`.
    """

    config: ModelConfig
    active: int
    """N: weights that a token passes; of a mixture its chosen experts, of the embedding none unless it is the head."""
    adapters: int = 0
    """n: weights of the adapters that a token passes; 0 where all weights are trained."""

    @classmethod
    def of(cls, config: ModelConfig, adapters: int = 0) -> Operations:
        """Of training a whole model, or `adapters` parameters beside a frozen one."""
        return cls(config=config, active=active_parameters(config), adapters=adapters)

    @property
    def per_token(self) -> int:
        """Operations of one token outside of attention."""
        return 4 * self.active + 6 * self.adapters if self.adapters else 6 * self.active

    @property
    def per_pair(self) -> int:
        """Operations of attention for one pair, in one layer."""
        attention = self.config.attention
        dims = 2 * attention.head_dim if isinstance(attention, GQA) else (
            attention.nope_dim + attention.rope_dim + attention.value_dim
        )  # fmt: skip
        return 6 * attention.heads * dims

    def total(self, tokens: int, pairs: int) -> int:
        """Operations of `tokens` real tokens that see `pairs` tokens, summed over all layers."""
        return self.per_token * tokens + self.per_pair * pairs

    def formula(self) -> str:
        """The formula with this model's numbers, as it is printed beside every MFU: a line, and one for each letter."""
        weights = "4·N·T + 6·n·T" if self.adapters else "6·N·T"
        adapters = [f"n = {self.adapters:,} weights of the adapters"] if self.adapters else []
        attention = self.config.attention
        dims = "2·head_dim" if isinstance(attention, GQA) else "(nope_dim + rope_dim + value_dim)"
        lines = (
            f"MFU = ({weights} + 6·heads·{dims}·P) / (seconds · devices · peak), what is recomputed left out",
            f"N = {self.active:,} active weights, without the input embedding",
            *adapters,
            "T = tokens without padding",
            f"P = layers · Σ Lᵢ·(Lᵢ+1)/2, Lᵢ the real sequences' lengths{self._windowed()}",
        )
        return "\n  ".join(lines)

    def _windowed(self) -> str:
        attention = self.config.attention
        window = attention.window if isinstance(attention, GQA) else None
        return "" if window is None else f"; {len(window.layers)} layers see at most {window.size} tokens"


def attended_pairs(config: ModelConfig, lengths: Iterable[int]) -> int:
    """Pairs of a token and one that it sees, itself included, in sequences of these lengths, over all layers."""
    lengths = list(lengths)
    window = config.attention.window if isinstance(config.attention, GQA) else None
    sliding = 0 if window is None else len(window.layers)
    pairs = (config.layers - sliding) * sum(causal_pairs(length) for length in lengths)
    return pairs if window is None else pairs + sliding * sum(causal_pairs(length, window.size) for length in lengths)


def causal_pairs(length: int, window: int | None = None) -> int:
    """Pairs in one sequence of which each token sees itself and those before it, or the last `window` of them."""
    seen = length if window is None else min(length, window)
    return seen * (seen + 1) // 2 + (length - seen) * seen
