"""Mixture of experts: a router chooses, a few experts compute, their results are weighed and added.

Shapes: N tokens, E hidden, F inner, X experts, C chosen ones per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.catalogue.config import GroupedSigmoidRouter, MoE
from tandem.model.feed_forward import FeedForward


class Router(nn.Module):
    """Which experts a token goes to, and with what weights."""

    def __init__(self, hidden: int, mixture: MoE) -> None:
        super().__init__()
        self.mixture = mixture
        self.weight = nn.Parameter(torch.empty(mixture.experts, hidden))
        if isinstance(mixture.router, GroupedSigmoidRouter):
            # Moved by the balance of loads and never by gradients; fp32 in every model.
            self.bias = nn.Parameter(torch.zeros(mixture.experts, dtype=torch.float32), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, E] -> weights, fp32 [N, C], and the experts they are for, int64 [N, C]."""
        scores = self.scores(x)
        if isinstance(self.mixture.router, GroupedSigmoidRouter):
            return self._grouped(scores, self.mixture.router)
        weights, chosen = scores.topk(self.mixture.top_k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True), chosen

    def scores(self, x: Tensor) -> Tensor:
        """[N, E] -> what each expert is to a token, fp32 [N, X]: a probability, or a sigmoid."""
        if isinstance(self.mixture.router, GroupedSigmoidRouter):
            return F.linear(x.float(), self.matrix().float()).sigmoid()
        return F.linear(x, self.matrix()).float().softmax(dim=-1)

    def matrix(self) -> Tensor:
        """What tokens are multiplied with, [X, E]; an adapter adds to it."""
        return self.weight

    def _grouped(self, scores: Tensor, router: GroupedSigmoidRouter) -> tuple[Tensor, Tensor]:
        """The best groups by their two best experts, and the best experts within them (DeepSeek-V3, 2024)."""
        corrected = (scores + self.bias).view(len(scores), router.groups, -1)
        best = corrected.topk(2, dim=-1).values.sum(dim=-1).topk(router.chosen_groups, dim=-1).indices
        outside = torch.ones_like(corrected[..., 0], dtype=torch.bool).scatter(-1, best, value=False)
        corrected = corrected.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)
        chosen = corrected.topk(self.mixture.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if router.normalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * router.scale, chosen


class Experts(nn.Module):
    """SwiGLU experts, stacked."""

    def __init__(self, hidden: int, mixture: MoE) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(mixture.experts, mixture.size, hidden))
        self.up = nn.Parameter(torch.empty(mixture.experts, mixture.size, hidden))
        self.down = nn.Parameter(torch.empty(mixture.experts, hidden, mixture.size))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """[N, E], [N, C], [N, C] -> [N, E], summed in at least fp32; only experts that some token chose compute."""
        choices = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.gate)).tolist()
        gate, up, down = (self.product(part) for part in ("gate", "up", "down"))
        out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        end = 0
        for expert, count in enumerate(counts):
            end += count
            if count:
                mine = choices[end - count : end]
                token = mine // chosen.shape[1]
                rows = x[token]
                inner = F.silu(gate(rows, expert)) * up(rows, expert)
                result = down(inner, expert) * weights.flatten()[mine, None]
                out = out.index_add(0, token, result.to(out.dtype))
        return out.to(x.dtype)

    def product(self, part: str) -> Callable[[Tensor, int], Tensor]:
        """Rows and an expert's number -> these rows times that expert's gate, up or down; an adapter adds to it."""
        matrices = unstacked(getattr(self, part))
        return lambda rows, expert: F.linear(rows, matrices[expert])


def unstacked(stack: Tensor) -> Sequence[Tensor] | Tensor:
    """The experts' own matrices of a stack [X, ...].

    Where gradients flow, taken apart at once: that of one expert cut out is as large as the whole stack.
    """
    return stack.unbind() if torch.is_grad_enabled() else stack


class Mixture(nn.Module):
    """Router, experts, and the expert that every token passes where there is one."""

    def __init__(self, hidden: int, mixture: MoE) -> None:
        super().__init__()
        self.router = Router(hidden, mixture)
        self.experts = Experts(hidden, mixture)
        self.shared = FeedForward(hidden, mixture.shared_size) if mixture.shared_size else None

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] -> [T, E]."""
        rows = x.flatten(0, -2)
        out = self.experts(rows, *self.router(rows)).view_as(x)
        return out if self.shared is None else out + self.shared(x)  # type: ignore[no-any-return]
