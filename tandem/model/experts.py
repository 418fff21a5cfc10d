"""Mixture of experts: a router chooses, a few experts compute, their results are weighed and added.

Shapes: N tokens, E hidden, F inner, X experts, C chosen ones per token.
"""

from __future__ import annotations

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
        if isinstance(self.mixture.router, GroupedSigmoidRouter):
            return self._grouped(x, self.mixture.router)
        scores = F.linear(x, self.weight).float().softmax(dim=-1)
        weights, chosen = scores.topk(self.mixture.top_k, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True), chosen

    def _grouped(self, x: Tensor, router: GroupedSigmoidRouter) -> tuple[Tensor, Tensor]:
        """The best groups by their two best experts, and the best experts within them (DeepSeek-V3, 2024)."""
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        corrected = (scores + self.bias).view(len(x), router.groups, -1)
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
        # Where gradients flow, taken apart at once: that of one expert cut out is as large as the whole stack.
        stacks = (self.gate, self.up, self.down)
        gates, ups, downs = (stack.unbind() if torch.is_grad_enabled() else stack for stack in stacks)
        out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        end = 0
        for expert, count in enumerate(counts):
            end += count
            if count:
                mine = choices[end - count : end]
                token = mine // chosen.shape[1]
                rows = x[token]
                inner = F.silu(F.linear(rows, gates[expert])) * F.linear(rows, ups[expert])
                result = F.linear(inner, downs[expert]) * weights.flatten()[mine, None]
                out = out.index_add(0, token, result.to(out.dtype))
        return out.to(x.dtype)


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
