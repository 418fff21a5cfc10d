"""`Loads`: how many tokens of a step each expert was given, and the biases that even that out.

DeepSeek-V3 (DeepSeek-AI, 2024, section 2.1.2; Wang et al., "Auxiliary-loss-free load balancing strategy for mixture of
experts", 2024): after each step the bias of an expert that got more tokens than the mean of its layer falls by `speed`,
that of one that got fewer rises by it. Biases only choose: no weight is changed by them, and no gradient meets them.

Tokens are counted over the whole batch of all ranks, in whole numbers, so that nothing depends on who counted them;
padding is not counted, and a layer that is computed again in the backward pass is counted once.

Shapes: L layers with a mixture, X experts, N tokens, C chosen experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tandem.model.experts import Router
from tandem.parallel.world import World

PRETRAINING = 0.001
"""Speed for the first 14.3 of DeepSeek-V3's 14.8 T tokens, and 0 for the last (section 4.2 of its report)."""


class Loads:
    """Counts what routers choose.

    Args:
        routers: Listened to as long as they live; there may be none.
    """

    def __init__(self, routers: Sequence[Router]) -> None:
        self._routers = routers
        self._real: Tensor | None = None
        self._counted: set[int] = set()
        self.begin(torch.device("cpu"))
        for layer, router in enumerate(routers):
            router.register_forward_hook(partial(self._count, layer))

    def begin(self, device: torch.device) -> None:
        """A step begins: nothing is counted yet."""
        experts = self._routers[0].mixture.experts if self._routers else 0
        self.counts = torch.zeros(len(self._routers), experts, dtype=torch.int64, device=device)
        """Of this rank since `begin`, int64 [L, X]."""

    def of(self, real: Tensor | None) -> None:
        """The routers choose for a micro-batch from now on; None where what they choose does not count.

        Args:
            real: bool [N], which of its tokens are no padding.
        """
        self._real = real
        self._counted.clear()

    def settle(self, world: World, speed: float) -> float | None:
        """End a step that was taken: count over all ranks, and move the biases, the same bits on every rank.

        Args:
            world: The ranks; all of them call this.
            speed: What is added to a bias or taken from it; 0 leaves them.

        Returns:
            Tokens of the most loaded expert over its layer's mean, in the layer where that is most; None for a model
            without a mixture.

        Raises:
            ProcessError: A rank is gone.
        """
        if not self._routers:
            return None
        # By itself, and not with the losses: those are summed in fp32, where tokens above 2^24 get lost.
        counts = world.total(self.counts)
        for router, own in zip(self._routers, counts, strict=True) if speed else ():
            _move(router, own, speed)
        over_mean = counts.amax(dim=1) * counts.shape[1] / counts.sum(dim=1).clamp(min=1)
        return float(over_mean.max())

    def _count(self, layer: int, router: Router, rows: tuple[Tensor], given: tuple[Tensor, Tensor]) -> None:
        if self._real is None or layer in self._counted:
            return
        self._counted.add(layer)
        chosen = given[1]
        self.counts[layer].index_add_(0, chosen.flatten(), self._real.long()[:, None].expand_as(chosen).flatten())


@torch.no_grad()
def _move(router: Router, counts: Tensor, speed: float) -> None:
    below = (counts.sum() - counts * len(counts)).sign()
    router.bias.add_(speed * below)
