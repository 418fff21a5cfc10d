"""Cross-entropy of hidden states, so that the logits of a whole batch never exist.

Logits are the largest thing of a step: 4096 tokens of Qwen2's vocabulary are 2.5 GB in fp32, once more as a gradient.
Here they are made for a few tokens at a time, and turned into gradients at once (Liger-Kernel, Hsu et al., 2024), so
nothing is computed twice. `F.linear_cross_entropy` of torch 2.13 does the same; for 1024 tokens, 384 hidden and 16,000
words it took 578 ms where plain logits took 388 and this 314 (one CPU thread), so it is not used.

Shapes: N tokens that count, B sequences, T tokens in each, E hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tandem.model.context import AttentionContext
from tandem.model.decoder import Decoder
from tandem.model.head import NormHead
from tandem.training.data.labels import IGNORED

CACHED_LOGITS = 2**21
"""Logits at once on a CPU: 8 MB, which stay in its cache between the three things done with them."""
DEVICE_LOGITS = 2**27
"""Elsewhere: 512 MB, enough rows to fill a matrix unit."""


class LossModel(nn.Module):
    """A decoder and its loss in one forward.

    This is the root to shard with FSDP: the head's weight is read inside its forward, where it is whole. It belongs to
    the root's own parameters, so the head must not be sharded as a module of its own.

    Args:
        decoder: The one to train; its parameters are called `decoder.<name>` here.
        rows: Tokens whose logits exist at once; what suits the device if left out.
    """

    def __init__(self, decoder: Decoder, rows: int | None = None) -> None:
        super().__init__()
        self.decoder = decoder
        self._rows = rows

    def forward(self, tokens: Tensor, targets: Tensor, context: AttentionContext) -> Tensor:
        """Sum of the losses of all targets that count, in nats, fp32 scalar.

        Args:
            tokens: int64 [B, T].
            targets: int64 [B, T]; where `IGNORED`, the token has no logits.
            context: What each token may look at.
        """
        hidden, targets = _counting(self.decoder.hidden(tokens, context), targets)
        matrix = output_matrix(self.decoder)
        rows = self._rows or rows_at_once(self.decoder.config.vocab_size, hidden.device.type)
        if matrix is None:
            return _through_head(self.decoder, hidden, targets, rows)
        return linear_cross_entropy(hidden, matrix, targets, rows)


def output_matrix(decoder: Decoder) -> Tensor | None:
    """[V, E] whose products with hidden states are the logits; None where the head does more than multiply."""
    head = decoder.head
    if head is None:
        return decoder.embedding.weight
    if isinstance(head, NormHead):
        wide: Tensor = head.weight / head.lengths()[:, None]
        return wide.to(head.weight.dtype)
    # An adapter brings a forward of its own, FSDP's class does not.
    return head.weight if type(head).forward is nn.Linear.forward else None


def linear_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, rows: int) -> Tensor:
    """Summed cross-entropy of `hidden @ matrix.T`, fp32 scalar.

    Args:
        hidden: [N, E].
        matrix: [V, E]; where it needs no gradient, none is computed.
        targets: int64 [N].
        rows: Tokens whose logits exist at once.
    """
    if not torch.is_grad_enabled():
        hidden, matrix = hidden.detach(), matrix.detach()
    return _LinearCrossEntropy.apply(hidden, matrix, targets, rows)  # type: ignore[no-any-return, no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, targets: Tensor, rows: int) -> Tensor:
        moves_hidden, moves_matrix = ctx.needs_input_grad[:2]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        to_hidden = torch.empty_like(hidden) if moves_hidden else None
        # In at least fp32, however many pieces are added.
        to_matrix = torch.zeros_like(matrix, dtype=wide) if moves_matrix else None
        for begin in range(0, len(hidden), rows):
            part = slice(begin, begin + rows)
            logits = (hidden[part] @ matrix.T).to(wide)
            loss += _to_gradient(logits, targets[part])
            logits = logits.to(hidden.dtype)
            if to_hidden is not None:
                torch.mm(logits, matrix, out=to_hidden[part])
            if to_matrix is not None:
                _add_product(to_matrix, logits.T, hidden[part])
        ctx.save_for_backward(to_hidden, None if to_matrix is None else to_matrix.to(matrix.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        # In place: nobody else holds them, and the matrix's is as large as the matrix.
        to_hidden, to_matrix = (None if saved is None else saved.mul_(scale) for saved in ctx.saved_tensors)
        return to_hidden, to_matrix, None, None


def _to_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits [n, V] into the gradient of their summed loss, in place; returns that loss."""
    norms = logits.logsumexp(dim=1, keepdim=True)
    chosen = targets[:, None]
    loss = (norms - logits.gather(1, chosen)).sum()
    logits.sub_(norms).exp_()
    logits.scatter_add_(1, chosen, logits.new_full((1, 1), -1.0).expand_as(chosen))
    return loss


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out += left @ right


def _through_head(decoder: Decoder, hidden: Tensor, targets: Tensor, rows: int) -> Tensor:
    """The same through the head's own forward; the logits are made a second time for the gradient."""

    def summed(hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(decoder.logits(hidden).float(), targets, reduction="sum")

    pieces = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    losses = [checkpoint(summed, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.stack(losses).sum()


def _counting(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens whose targets count: [B, T, E] and [B, T] -> [N, E] and [N]."""
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    counts = targets != IGNORED
    return (hidden, targets) if bool(counts.all()) else (hidden[counts], targets[counts])


def rows_at_once(vocab_size: int, device: str) -> int:
    """Tokens whose logits exist at once on a type of device."""
    return max((CACHED_LOGITS if device == "cpu" else DEVICE_LOGITS) // vocab_size, 1)
