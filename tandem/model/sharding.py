"""A decoder shared out to the ranks of a tensor-parallel group (Shoeybi et al., 2019).

One rank's decoder is the decoder of a narrower model: fewer heads, smaller inner sizes, fewer rows of the vocabulary.

    vocabulary rows    embedding, head             each token's row from the rank that has it; logits are gathered
    heads              q, k, v; q_up, kv_up        every rank its own; with fewer kv heads than ranks some share one
    columns, by heads  o                           sums of a part of the heads: added up over the ranks
    inner rows         gate, up; each expert's     every rank its part of each, also of the shared expert
    inner columns      down; each expert's         likewise added up, once for the whole layer
    whole              norms, routers, q_down, kv_down

What is added up has the same bits on every rank, so that all routers choose the same experts.

Shapes: T tokens (any leading dimensions), E hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tandem.catalogue.config import GQA, MLA, ModelConfig, MoE, SwiGLU
from tandem.catalogue.shapes import Shape, parameter_shapes
from tandem.errors import UsageError
from tandem.model.decoder import Decoder
from tandem.model.positions import Positions
from tandem.model.weights.cut import Cut
from tandem.parallel.collectives import Group
from tandem.parallel.split import kv_part, part

VOCABULARY = ("embedding.weight", "head.weight")


def narrowed(config: ModelConfig, rank: int, ranks: int) -> ModelConfig:
    """The model whose decoder is one rank's part.

    Raises:
        UsageError: A size of the model cannot be shared out among so many; the message says what would do.
    """
    try:
        return _narrowed(config, rank, ranks)
    except UsageError as error:
        allowed = ", ".join(str(number) for number in range(1, config.attention.heads + 1) if _fits(config, number))
        raise UsageError(f"{error}; this model allows {allowed}") from None


def _narrowed(config: ModelConfig, rank: int, ranks: int) -> ModelConfig:
    return replace(
        config,
        vocab_size=len(vocabulary_part(config.vocab_size, rank, ranks)),
        attention=_fewer_heads(config.attention, rank, ranks),
        feed_forward=_smaller(config.feed_forward, ranks),
    )


def _fits(config: ModelConfig, ranks: int) -> bool:
    try:
        _narrowed(config, 0, ranks)
    except UsageError:
        return False
    return True


def cuts(config: ModelConfig, rank: int, ranks: int) -> dict[str, Cut]:
    """Parameter name -> which part of it a rank holds; those that it holds whole are left out.

    Raises:
        UsageError: A size of the model cannot be shared out among so many.
    """
    own = parameter_shapes(narrowed(config, rank, ranks))
    found = {name: _cut(shape, own[name], rank, ranks) for name, shape in parameter_shapes(config).items()}
    rows = Cut(0, vocabulary_part(config.vocab_size, rank, ranks))
    return {name: rows if name in VOCABULARY else one for name, one in found.items() if one is not None}


def vocabulary_part(size: int, rank: int, ranks: int) -> range:
    """The token ids whose rows a rank holds: equal parts, but for the last one where the number does not divide.

    Raises:
        UsageError: Nothing would be left for the last rank.
    """
    step = -(-size // ranks)
    if step * (ranks - 1) >= size:
        raise UsageError(f"--tensor-parallel-size {ranks}: a vocabulary of {size} is too small for it")
    return range(rank * step, min((rank + 1) * step, size))


class RankDecoder(Decoder):
    """One rank's part of a decoder; computes what the whole one does, together with the other ranks.

    Args:
        config: Of the whole model.
        group: The ranks.
    """

    def __init__(self, config: ModelConfig, group: Group) -> None:
        super().__init__(narrowed(config, group.rank, group.size))
        self.config = config
        self._group = group
        self.embedding = RankEmbedding(config, group)
        heads = part(config.attention.heads, group.rank, group.size, "attention heads")
        self._positions = Positions(config, heads)
        for block in self.layers:
            for partial in (block.attention, block.feed_forward):
                assert isinstance(partial, nn.Module)
                partial.register_forward_hook(self._added_up)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states [T, E] -> logits [T, V], on every rank."""
        own = super().logits(hidden)
        most = len(vocabulary_part(self.config.vocab_size, 0, self._group.size))
        gathered = self._group.all_gather(F.pad(own, (0, most - own.shape[-1])))
        return gathered[..., : self.config.vocab_size]

    def _added_up(self, _module: nn.Module, _inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        return self._group.all_reduce(out)


class RankEmbedding(nn.Embedding):
    """The rows of one rank's part of the vocabulary.

    Args:
        config: Of the whole model.
        group: The ranks.
    """

    def __init__(self, config: ModelConfig, group: Group) -> None:
        ids = vocabulary_part(config.vocab_size, group.rank, group.size)
        super().__init__(len(ids), config.hidden_size)
        self._first = ids.start
        self._group = group

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids [T] of the whole vocabulary -> their rows [T, E], whoever has them."""
        places = tokens - self._first
        elsewhere = (places < 0) | (places >= self.num_embeddings)
        rows = super().forward(places.masked_fill(elsewhere, 0))
        return self._group.all_reduce(rows.masked_fill(elsewhere[..., None], 0))


def _fewer_heads(attention: GQA | MLA, rank: int, ranks: int) -> GQA | MLA:
    heads = len(part(attention.heads, rank, ranks, "attention heads"))
    if isinstance(attention, MLA):
        return replace(attention, heads=heads)
    return replace(attention, heads=heads, kv_heads=len(kv_part(attention.kv_heads, rank, ranks)))


def _smaller(feed_forward: SwiGLU | MoE, ranks: int) -> SwiGLU | MoE:
    def share(size: int) -> int:
        return len(part(size, 0, ranks, "feed-forward size"))

    if isinstance(feed_forward, SwiGLU):
        return SwiGLU(size=share(feed_forward.size))
    return replace(
        feed_forward,
        size=share(feed_forward.size),
        shared_size=share(feed_forward.shared_size),
        dense_size=share(feed_forward.dense_size),
    )


def _cut(whole: Shape, own: Shape, rank: int, ranks: int) -> Cut | None:
    """Where the shapes differ is the dimension; several ranks have the same part where there are fewer parts."""
    for dim, (size, step) in enumerate(zip(whole, own, strict=True)):
        if size != step:
            first = rank * (size // step) // ranks * step
            return Cut(dim, range(first, first + step))
    return None
