"""The decoder's own layers with a LoRA beside them (Hu et al., 2021): `W x + scale B A x`, of which A and B learn.

A layer keeps its place, its parameters and their names; it becomes an object of a class here and gets two parameters
for each matrix, `lora_a` and `lora_b` (`gate_lora_a` ... for stacked experts). Factors are kept in fp32 at least,
and multiply in the dtype of what comes in. A decoder without them computes what it always did.

Shapes: B rows, T tokens (any leading dimensions), I in, O out, r rank, X experts, V vocabulary, E hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.model.block import Block
from tandem.model.context import AttentionContext
from tandem.model.experts import Experts, Router, unstacked
from tandem.model.positions import Placement
from tandem.training.adapters.dropout import drop


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How much a pair of factors adds."""

    rank: int
    alpha: float
    rslora: bool = False
    """Divide by the rank's root instead of the rank (Kalajdzievski, 2023)."""
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        """Factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Adapted:
    """What the four kinds of layers have in common; mixed into a module."""

    strengths: dict[str, Strength]
    """Of each adapted matrix, by the name of its parameter."""

    def factors(self, part: str) -> tuple[Tensor, Tensor]:
        """A [r, I] and B [O, r] of one matrix; [X, r, I] and [X, O, r] of a stack."""
        a, b = factor_names(part)
        return getattr(self, a), getattr(self, b)

    def delta(self, part: str) -> Tensor:
        """`scale B A`, in the matrix's shape and the factors' dtype."""
        a, b = self.factors(part)
        return b @ a * self.strengths[part].scale


class LoraLinear(Adapted, nn.Linear):
    """A linear layer; the only kind with dropout."""

    key: int
    """For dropout: of the run and of this layer."""
    samples: Tensor | None = None
    """For dropout: which sample of the run each row is, int64 [B]; its block sets it."""

    def forward(self, x: Tensor) -> Tensor:
        """[T, I] -> [T, O]."""
        return _added(super().forward(x), self._dropped(x), *self.factors("weight"), self.strengths["weight"].scale)

    def _dropped(self, x: Tensor) -> Tensor:
        p = self.strengths["weight"].dropout
        if not p or not self.training:
            return x
        assert self.samples is not None, "with dropout, batches say which samples they are: Batch.numbered"
        return drop(x, p, self.key, self.samples)


class LoraEmbedding(Adapted, nn.Embedding):
    """The table of embeddings: A [r, V] is looked up, B is [E, r]."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [T] -> [T, E]."""
        a, b = self.factors("weight")
        looked_up = F.embedding(tokens, a.T).to(self.weight.dtype)
        return super().forward(tokens) + F.linear(looked_up, b.to(looked_up.dtype)) * self.strengths["weight"].scale

    def delta(self, part: str) -> Tensor:
        """[V, E]."""
        return super().delta(part).T


class LoraRouter(Adapted, Router):
    """A mixture's router."""

    def matrix(self) -> Tensor:
        """[X, E]."""
        return self.weight + self.delta("weight").to(self.weight.dtype)


class LoraExperts(Adapted, Experts):
    """Stacked experts, each with factors of its own; gate, up and down need not all be adapted."""

    def product(self, part: str) -> Callable[[Tensor, int], Tensor]:
        """Rows and an expert's number -> these rows times that expert's gate, up or down."""
        base = super().product(part)
        if part not in self.strengths:
            return base
        a, b = (unstacked(factor) for factor in self.factors(part))
        scale = self.strengths[part].scale
        return lambda rows, expert: _added(base(rows, expert), rows, a[expert], b[expert], scale)


class LoraBlock(Block):
    """A block that tells its layers which samples are coming; in `forward`, so that recomputation tells them again."""

    def forward(self, x: Tensor, place: Placement, context: AttentionContext) -> Tensor:
        """[T, E] -> [T, E]."""
        for module in self.modules():
            if isinstance(module, LoraLinear):
                module.samples = getattr(context, "samples", None)
        return super().forward(x, place, context)


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LoraLinear,
    nn.Embedding: LoraEmbedding,
    Router: LoraRouter,
    Experts: LoraExperts,
}


def factor_names(part: str) -> tuple[str, str]:
    """What the factors of a matrix are called in its module."""
    prefix = "" if part == "weight" else f"{part}_"
    return f"{prefix}lora_a", f"{prefix}lora_b"


def factor_shapes(shape: torch.Size, rank: int, *, table: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B beside a matrix or stack `[..., O, I]`, or an embedding `table` [V, E]."""
    *stack, rows, columns = shape
    wide, high = (rows, columns) if table else (columns, rows)
    return (*stack, rank, wide), (*stack, high, rank)


def attach(module: nn.Module, part: str, strength: Strength) -> None:
    """Give one matrix of a layer its factors, as empty as its own device makes them; the layer changes its kind."""
    if not isinstance(module, Adapted):
        module.__class__ = KINDS[type(module)]  # as FSDP2 does: place, hooks and parameters stay
        assert isinstance(module, Adapted)
        module.strengths = {}
    base = getattr(module, part)
    dtype = torch.promote_types(base.dtype, torch.float32)
    shapes = factor_shapes(base.shape, strength.rank, table=isinstance(module, nn.Embedding))
    for name, shape in zip(factor_names(part), shapes, strict=True):
        module.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype, device=base.device)))
    module.strengths[part] = strength


@torch.no_grad()
def merge_layer(module: nn.Module) -> None:
    """Add each `scale B A` to its matrix, in fp32 at least, and make the layer what it was before."""
    assert isinstance(module, Adapted)
    plain = next(plain for plain, adapted in KINDS.items() if type(module) is adapted)
    for part in module.strengths:
        base = getattr(module, part)
        base.copy_(base + module.delta(part).to(base.device))
        for name in factor_names(part):
            delattr(module, name)
    del module.strengths
    module.__class__ = plain  # type: ignore[assignment]


def _added(base: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`base + scale B A x`, [T, O].

    In one operation, because B A x by itself is as large as `base`, and so would its multiple be and, in the backward
    pass, a multiple of the gradient.
    """
    few = F.linear(x, a.to(x.dtype))
    return torch.addmm(base.flatten(0, -2), few.flatten(0, -2), b.to(x.dtype).T, alpha=scale).view_as(base)
