"""A model's structure at a size for tests and first tries: every special feature stays, and stays effective.

What "effective" asks for: fewer key heads than heads where the original has fewer; a head count that is no power of two
where the original's is none, which is what ALiBi's slopes and odd divisions depend on; rotary scalings and windows that
set in within a few hundred tokens; plain layers before a mixture's; groups of experts to choose among.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from tandem.catalogue.arithmetic import weight_bytes
from tandem.catalogue.config import GQA, MLA, GroupedSigmoidRouter, ModelConfig, MoE, SwiGLU, Window
from tandem.catalogue.position import Alibi, DynamicNTK, Llama3Scaling, QwenNTK, Rope, Scaling, Yarn
from tandem.errors import ConfigurationError, UsageError

HEAD_DIM = 16
STRETCHED_FROM = 64
"""Trained length of a small model's rotary scaling. With Llama 3's base and sixteen dimensions the wavelengths are 6,
32, 167 tokens and longer, so this keeps one, interpolates one and stretches the others."""
QWEN_TRAINED = 128


@dataclass(frozen=True, kw_only=True)
class SmallShape:
    """The sizes a small model may be given; None leaves them to the original's proportions.

    Raises:
        UsageError: A size is not positive.
    """

    layers: int = 4
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    inner: int | None = None
    """Feed-forward size of a plain layer, or of an expert where there is no plain layer."""
    experts: int | None = None
    vocab: int = 1024
    max_position: int = 1024

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise UsageError(f"shape: {field.name} is {value}; expected a whole number from 1 up")


def parse_shape(text: str) -> SmallShape:
    """`layers=8,hidden=256` -> a shape.

    Raises:
        UsageError: A part is no `name=number`, the name is not known, or is there twice.
    """
    known = [field.name for field in fields(SmallShape)]
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in known or not number.isdecimal():
            raise UsageError(f"shape: {part.strip()!r} is not NAME=NUMBER with one of {', '.join(known)}")
        if name in sizes:
            raise UsageError(f"shape: {name} is given twice; leave one out")
        sizes[name] = int(number)
    return SmallShape(**sizes)


def chosen_config(config: ModelConfig, *, tiny: bool, shape: str | None, full: bool) -> ModelConfig:
    """The configuration that exactly one of the three asks for.

    Raises:
        UsageError: None of them is given, or more than one, or the shape does not fit.
    """
    if sum((tiny, shape is not None, full)) != 1:
        size = weight_bytes(config, "bfloat16") / 2**30
        raise UsageError(f"choose one of --tiny, --shape and --full; the full size is {size:,.1f} GiB in bfloat16")
    return config if full else shrink(config, parse_shape(shape) if shape is not None else None)


def shrink(config: ModelConfig, shape: SmallShape | None = None) -> ModelConfig:
    """The same structure in a small shape.

    Raises:
        UsageError: The sizes do not go together; the message names them.
    """
    try:
        return _shrunk(config, shape or SmallShape())
    except ConfigurationError as error:
        raise UsageError(f"shape: {error}; change one of the sizes") from None


def _shrunk(config: ModelConfig, shape: SmallShape) -> ModelConfig:
    _refuse_unused(config, shape)
    heads = shape.heads or _small_heads(config.attention.heads)
    hidden = shape.hidden or heads * HEAD_DIM
    # Half of a head may be rotated, and rotation needs pairs.
    if hidden % (4 * heads):
        raise UsageError(f"shape: hidden {hidden} is no multiple of 4 x {heads} heads; change one of them")
    attention = _attention(config, shape, heads, hidden // heads)
    return replace(
        config,
        vocab_size=shape.vocab,
        hidden_size=hidden,
        layers=shape.layers,
        attention=attention,
        position=_position(config, attention, shape.max_position),
        feed_forward=_feed_forward(config, shape, hidden),
        max_position=shape.max_position,
    )


def _refuse_unused(config: ModelConfig, shape: SmallShape) -> None:
    unused = {
        "kv_heads": isinstance(config.attention, MLA),
        "experts": not isinstance(config.feed_forward, MoE),
    }
    for name, useless in unused.items():
        if useless and getattr(shape, name) is not None:
            raise UsageError(f"shape: this model has nothing that {name} could size; leave it out")


def _small_heads(heads: int) -> int:
    return 4 if heads.bit_count() == 1 else 6


def _small_kv_heads(attention: GQA, heads: int) -> int:
    """At least two where it can be, so that which heads share one matters."""
    if attention.kv_heads == attention.heads:
        return heads
    return next((few for few in (2, 1) if heads % few == 0 and few < heads), heads)


def _attention(config: ModelConfig, shape: SmallShape, heads: int, head_dim: int) -> GQA | MLA:
    attention = config.attention
    if isinstance(attention, MLA):
        return MLA(
            heads=heads,
            q_rank=None if attention.q_rank is None else 3 * head_dim,
            kv_rank=2 * head_dim,
            nope_dim=head_dim,
            rope_dim=head_dim // 2,
            value_dim=head_dim,
        )
    return replace(
        attention,
        heads=heads,
        kv_heads=shape.kv_heads or _small_kv_heads(attention, heads),
        head_dim=head_dim,
        window=_window(attention.window, config.layers, shape.layers),
        logn=QWEN_TRAINED if attention.logn else None,
    )


def _window(window: Window | None, of: int, layers: int) -> Window | None:
    """All layers slide where all `of` them do, and half of them where some do, so that both kinds are there."""
    if window is None:
        return None
    return Window(size=STRETCHED_FROM, layers=tuple(range(0 if len(window.layers) == of else layers // 2, layers)))


def _position(config: ModelConfig, attention: GQA | MLA, max_position: int) -> Rope | Alibi:
    position = config.position
    if isinstance(position, Alibi):
        return position
    scaling = _scaling(position.scaling, max_position)
    if isinstance(attention, MLA):
        return replace(position, dims=attention.rope_dim, scaling=scaling)
    assert isinstance(config.attention, GQA)
    dims = attention.head_dim * position.dims // config.attention.head_dim
    return replace(position, dims=dims, scaling=scaling)


def _scaling(scaling: Scaling | None, max_position: int) -> Scaling | None:
    if isinstance(scaling, DynamicNTK):
        return replace(scaling, trained=max_position)  # config.json has one field for both
    if isinstance(scaling, QwenNTK):
        return replace(scaling, trained=QWEN_TRAINED)
    if isinstance(scaling, Llama3Scaling | Yarn):
        return replace(scaling, trained=STRETCHED_FROM)
    return scaling


def _feed_forward(config: ModelConfig, shape: SmallShape, hidden: int) -> SwiGLU | MoE:
    part = config.feed_forward
    if isinstance(part, SwiGLU):
        return SwiGLU(size=shape.inner or _proportional(part.size, config.hidden_size, hidden))
    dense = min(part.dense_layers, 2, shape.layers - 1)
    size = hidden // 2 if dense else shape.inner or hidden // 2
    mixture = replace(
        part,
        size=size,
        shared_size=size if part.shared_size else 0,
        dense_layers=dense,
        dense_size=(shape.inner or _proportional(part.dense_size, config.hidden_size, hidden)) if dense else 0,
    )
    return _fewer_experts(mixture, shape.experts)


def _fewer_experts(mixture: MoE, experts: int | None) -> MoE:
    if isinstance(router := mixture.router, GroupedSigmoidRouter):
        few = replace(router, groups=4, chosen_groups=2)
        return replace(mixture, experts=experts or 16, top_k=4, router=few)
    experts = experts or min(mixture.experts, 8)
    return replace(mixture, experts=experts, top_k=min(mixture.top_k, experts))


def _proportional(size: int, of: int, hidden: int) -> int:
    return max(round(hidden * size / of / 8) * 8, 8)
