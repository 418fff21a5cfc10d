"""`ModelConfig`: everything a decoder's computation depends on, as one frozen value.

Parts that come in kinds are tagged unions, so that a field exists only where it means something:

    attention     GQA | MLA
    position      Rope(scaling: none | LinearScaling | DynamicNTK | QwenNTK | Llama3Scaling | Yarn) | Alibi
    feed_forward  SwiGLU | MoE(router: SoftmaxRouter | GroupedSigmoidRouter)

What a checkpoint folder calls these things is the business of `model/families`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem.catalogue.position import Alibi, Rope
from tandem.catalogue.require import require

MOST_LAYERS = 2000
MOST_EXPERTS = 100_000
"""Of all layers together; DeepSeek-V3 has 15 thousand. Tables of a model's parameters are made of these."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Sliding-window attention: a token sees itself and the `size - 1` tokens before it."""

    size: int
    layers: tuple[int, ...]
    """The layers that have it, ascending; the others see everything before them."""

    def __post_init__(self) -> None:
        """Refuse a window that sees nothing or that no layer has."""
        require(self.size > 0, f"sliding window {self.size} must be positive")
        require(len(self.layers) > 0, "a sliding window needs layers that have it")


@dataclass(frozen=True, kw_only=True)
class GQA:
    """Grouped-query attention: `heads` query heads share `kv_heads` key/value heads (Ainslie et al., 2023)."""

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    window: Window | None = None
    logn: int | None = None
    """Queries at position i (from 1) beyond this many tokens are scaled by log(i) / log(logn); only at inference."""

    def __post_init__(self) -> None:
        """Refuse shapes no kernel can run."""
        require(min(self.heads, self.kv_heads, self.head_dim) > 0, f"attention sizes must be positive: {self}")
        require(self.heads % self.kv_heads == 0, f"{self.heads} heads are not divisible by {self.kv_heads} kv heads")
        require(self.logn is None or self.logn > 1, f"logn length {self.logn} must be over 1")


@dataclass(frozen=True, kw_only=True)
class MLA:
    """Multi-head latent attention: keys and values are projections of one small latent (DeepSeek-V2, 2024).

    What a token leaves in the cache is the latent and one rotated key part that all heads share.
    """

    heads: int
    q_rank: int | None
    """Size of the queries' own latent; None where they are projected directly."""
    kv_rank: int
    nope_dim: int
    """Part of each head's query and key that carries no position."""
    rope_dim: int
    """Part that is rotated."""
    value_dim: int

    def __post_init__(self) -> None:
        """Refuse empty parts."""
        sizes = (self.heads, self.q_rank or 1, self.kv_rank, self.nope_dim, self.rope_dim, self.value_dim)
        require(min(sizes) > 0, f"attention sizes must be positive: {self}")


@dataclass(frozen=True, kw_only=True)
class SwiGLU:
    """Gated feed-forward: `down(silu(gate(x)) * up(x))` (Shazeer, 2020)."""

    size: int

    def __post_init__(self) -> None:
        """Refuse an empty layer."""
        require(self.size > 0, f"feed-forward size {self.size} must be positive")


@dataclass(frozen=True, kw_only=True)
class SoftmaxRouter:
    """Mixtral's: the probabilities of the chosen experts, made to sum to one."""


@dataclass(frozen=True, kw_only=True)
class GroupedSigmoidRouter:
    """DeepSeek-V3's: sigmoid scores, a correction bias that only chooses, and groups of which the best are kept."""

    groups: int
    chosen_groups: int
    scale: float
    """Factor on the chosen experts' weights."""
    normalise: bool
    """Whether these weights are first made to sum to one."""

    def __post_init__(self) -> None:
        """Refuse a choice among nothing."""
        require(0 < self.chosen_groups <= self.groups, f"{self.chosen_groups} of {self.groups} groups cannot be chosen")
        require(self.scale > 0, f"routing scale {self.scale} must be positive")


@dataclass(frozen=True, kw_only=True)
class MoE:
    """Mixture of SwiGLU experts."""

    experts: int
    top_k: int
    """Experts per token."""
    size: int
    """Inner size of one expert."""
    router: SoftmaxRouter | GroupedSigmoidRouter
    shared_size: int = 0
    """Inner size of the expert every token passes; 0 for none."""
    dense_layers: int = 0
    """The first layers, which are plain."""
    dense_size: int = 0
    """Inner size of these."""
    balance: float = 0.0
    """Coefficient of the loss that keeps experts evenly busy in training, as published; 0 for none."""

    def __post_init__(self) -> None:
        """Refuse experts that cannot be chosen."""
        require(self.size > 0, f"expert size {self.size} must be positive")
        require(0 < self.top_k <= self.experts, f"{self.top_k} of {self.experts} experts cannot be chosen")
        require(min(self.shared_size, self.dense_layers, self.dense_size) >= 0, f"sizes must not be negative: {self}")
        require(self.balance >= 0, f"the coefficient of the balance, {self.balance}, must not be negative")
        require(self.dense_size > 0 or not self.dense_layers, "dense layers need a dense_size")
        if isinstance(router := self.router, GroupedSigmoidRouter):
            require(self.experts % router.groups == 0, f"{self.experts} experts do not fill {router.groups} groups")
            per_group = self.experts // router.groups
            require(per_group > 1, f"groups of {per_group} expert: a group is judged by its best two")
            reachable = router.chosen_groups * per_group
            require(self.top_k <= reachable, f"{self.top_k} experts cannot be chosen among {reachable}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One decoder.

    Raises:
        ConfigurationError: A size is not positive or sizes contradict each other.
    """

    family: str
    """Which translation in `model/families` reads and writes it."""
    vocab_size: int
    hidden_size: int
    layers: int
    attention: GQA | MLA
    position: Rope | Alibi
    feed_forward: SwiGLU | MoE
    norm_eps: float
    norm_weight_wide: bool = False
    """Norm weights multiply in fp32, before the cast to the model's dtype."""
    tied_embeddings: bool = False
    """The output head is the embedding table."""
    normalised_head: bool = False
    """The output head's rows are scaled to length one (Baichuan2's NormHead)."""
    max_position: int
    """Longest sequence the model was made for, in tokens."""

    def __post_init__(self) -> None:
        """Refuse empty models, and parts that do not go together."""
        sizes = {"vocab_size": self.vocab_size, "hidden_size": self.hidden_size, "layers": self.layers}
        for name, size in (sizes | {"max_position": self.max_position}).items():
            require(size > 0, f"{name} {size} must be positive")
        require(self.norm_eps > 0, f"norm_eps {self.norm_eps} must be positive")
        experts = self.feed_forward.experts if isinstance(self.feed_forward, MoE) else 1
        require(self.layers <= MOST_LAYERS, f"{self.layers} layers are more than any model has")
        require(self.layers * experts <= MOST_EXPERTS, f"{self.layers} layers of {experts} experts are too many")
        require(not (self.tied_embeddings and self.normalised_head), "a normalised head cannot be tied")
        self._require_fitting_position()

    def _require_fitting_position(self) -> None:
        attention, position = self.attention, self.position
        if isinstance(attention, MLA):
            fits = isinstance(position, Rope) and position.dims == attention.rope_dim
            require(fits, f"latent attention needs rotary positions over its {attention.rope_dim} rope dimensions")
        elif isinstance(position, Rope):
            require(position.dims <= attention.head_dim, f"{position.dims} of {attention.head_dim} cannot be rotated")
        if isinstance(attention, GQA) and attention.window is not None:
            require(max(attention.window.layers) < self.layers, "a layer with a sliding window is not there")

    def feed_forward_of(self, layer: int) -> SwiGLU | MoE:
        """The feed-forward part of one layer: a mixture's first layers may be plain."""
        mixture = self.feed_forward
        if isinstance(mixture, MoE) and layer < mixture.dense_layers:
            return SwiGLU(size=mixture.dense_size)
        return mixture

    @property
    def router_biases(self) -> bool:
        """Whether routers choose with biases that no gradient moves."""
        return isinstance(self.feed_forward, MoE) and isinstance(self.feed_forward.router, GroupedSigmoidRouter)

    @property
    def longest(self) -> int | None:
        """Longest sequence the positions reach; None where their scaling follows any length."""
        if isinstance(self.position, Alibi):
            return self.max_position
        reach = self.position.reach(self.max_position)
        return None if reach is None else max(reach, self.max_position)
