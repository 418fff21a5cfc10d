"""The loss that keeps a mixture's experts evenly busy, beside that of the words; off where nobody gives a coefficient.

Of one sequence of T tokens, in one layer with X experts, of which a token chooses C:

    f_x   share of the tokens that chose expert x; these add up to C
    P_x   mean over the tokens of x's probability, or of its part of all sigmoid scores; these add up to 1

    softmax router   X · Σ f_x · P_x       mean over the layers    Switch Transformer (Fedus et al., 2021), Mixtral
    sigmoid router   X / C · Σ f_x · P_x   sum over the layers     DeepSeek-V3 (2024), equations 17 to 20

Every sequence is judged by itself and weighs as many tokens as it really has, so the loss depends neither on packing
nor on micro-batches nor on ranks. `transformers` takes the tokens and layers of a micro-batch together, which does.

DeepSeek-V3's other means, that moves the routers' biases after a step, is in `loads.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tandem.catalogue.config import MoE, SoftmaxRouter
from tandem.model.experts import Router
from tandem.training.compute.loads import Loads
from tandem.training.data.batch import Batch
from tandem.training.data.sequences import numbered


class Balance:
    """Adds the loss's gradient to what routers give, and counts the loss as it does; beside it, experts' loads.

    A layer that is computed again in the backward pass adds and counts it once all the same: both happen where
    gradients pass. Without gradients, there is nothing.

    Args:
        model: Its routers are listened to as long as they live; with none, this does nothing.
        coefficient: Of the loss; None for what the model was published with.
    """

    def __init__(self, model: nn.Module, coefficient: float | None = None) -> None:
        routers = [module for module in model.modules() if isinstance(module, Router)]
        self.total = torch.zeros(())
        """Of what was learnt since `begin`: this rank's part of the loss, coefficient included; fp32 scalar."""
        self._tokens = 1
        self._sequences: tuple[Tensor, Tensor] | None = None
        self.loads = Loads(routers)
        """Of the experts, since `begin`."""
        self._mixes = bool(routers)
        factors = [factor_of(router.mixture, len(routers), coefficient) for router in routers]
        self.acts = any(factors)
        """Whether there is such a loss."""
        if self.acts:
            for router, factor in zip(routers, factors, strict=True):
                router.register_forward_hook(partial(self._add, factor))

    def begin(self, tokens: int, device: torch.device) -> None:
        """A batch begins, which has so many real tokens over all ranks."""
        self.total = torch.zeros((), device=device)
        self._tokens = max(1, tokens)
        self.loads.begin(device)

    @contextmanager
    def over(self, part: Batch) -> Iterator[None]:
        """The routers choose, forward and backward, for a micro-batch of it."""
        if self._mixes:
            self._sequences = sequences, lengths = numbered(part)
            self.loads.of(sequences < len(lengths))
        try:
            yield
        finally:
            self._sequences = None
            self.loads.of(None)

    def _add(
        self, factor: float, router: Router, rows: tuple[Tensor], given: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        if self._sequences is None or not torch.is_grad_enabled():
            return None
        weights, chosen = given
        loss = imbalance(router.scores(rows[0]), chosen, *self._sequences) * (factor / self._tokens)
        return _Added.apply(weights, loss, self.total), chosen  # type: ignore[no-untyped-call]


def factor_of(mixture: MoE, layers: int, coefficient: float | None) -> float:
    """What a layer's `imbalance` is multiplied with, for one of so many layers with a mixture."""
    coefficient = mixture.balance if coefficient is None else coefficient
    return coefficient / (layers if isinstance(mixture.router, SoftmaxRouter) else mixture.top_k)


def imbalance(scores: Tensor, chosen: Tensor, sequences: Tensor, lengths: Tensor) -> Tensor:
    """T · X · Σ f_x · P_x of each sequence, added up, fp32 scalar.

    Args:
        scores: [N, X], positive.
        chosen: int64 [N, C].
        sequences: int64 [N]: whose each token is; S for nobody's.
        lengths: int64 [S].
    """
    shares = scores / scores.sum(dim=-1, keepdim=True)
    choices = torch.zeros_like(shares).scatter(1, chosen, 1.0)
    of_all, of_chosen = (_summed(one, sequences, len(lengths)) for one in (shares, choices))
    return shares.shape[1] * ((of_all * of_chosen).sum(dim=1) / lengths.clamp(min=1)).sum()


def _summed(rows: Tensor, sequences: Tensor, count: int) -> Tensor:
    """[N, X] -> [S, X]."""
    return rows.new_zeros(count + 1, rows.shape[1]).index_add(0, sequences, rows)[:count]


class _Added(torch.autograd.Function):
    """Gives `x` as it is; where its gradient passes, adds `loss` to `total`, and gives it a gradient of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        ctx.total = total
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (loss,) = ctx.saved_tensors
        ctx.total += loss.detach()
        return gradient, torch.ones_like(loss), None
